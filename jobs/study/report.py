"""The report of a study: figures and pictures become charts, sheets of pictures, one HTML page and metrics.json."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from aecore.pictures import grid, titled_sheet, to_png
from jobs.study import plots
from jobs.study.charts import Chart, css_variables
from jobs.study.findings import findings

PAGE, METRICS = "study.html", "metrics.json"
WEBP_QUALITY = 88  # of the pictures in the page; the PNGs beside it are exact
TEMPLATE = Path(__file__).with_name("page.html.j2")
HEADS = {
    "hit_rate": ("faces", "{:.0%}"), "hog_frechet": ("HOG-Frechet", "{:.2f}"), "swd": ("SWD", "{:.0f}"),
}  # fmt: skip
Figures = dict[str, Any]
Arrays = Sequence[Mapping[str, Mapping[str, np.ndarray]]]  # of each run: part, name, array


@dataclass(frozen=True)
class Report:
    """The files of a report by name, the page last, and the sentences of it."""

    files: dict[str, bytes]
    findings: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Row:
    """Pictures side by side, uint8 (n, size, size, channels), between a label and figures."""

    label: str
    pictures: np.ndarray
    cells: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """Rows of pictures of the run that is the `number`th of the study, under `heads`."""

    number: int
    title: str
    label: str
    heads: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    texts: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    groups: Sequence[Sequence[Card]] = ()  # cards beside one another
    tables: Sequence[Table] = ()


def make_report(figures: Figures, arrays: Arrays) -> Report:
    """All files of the report on `figures` and the `arrays` of each run."""
    sections, said = make_sections(figures, arrays), findings(figures)
    files = {METRICS: (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode()}
    for section in sections:
        for chart in section.charts:
            files[f"chart-{chart.name}.png"] = chart.png
        for number, card in enumerate(card for group in section.groups for card in group):
            sheet = [("  ".join([row.label, *row.cells]), [row.pictures]) for row in card.rows]
            files[f"pictures-{section.id}-{number + 1}.png"] = to_png(titled_sheet(sheet))
    files[PAGE] = render(figures, sections, said).encode()
    return Report(files, said)


def make_sections(figures: Figures, arrays: Arrays) -> list[Section]:
    runs = list(zip(figures["runs"], arrays, strict=True))
    heads, cells = _heads(figures)

    def cards(part: str, label: str, rows: Any) -> list[Card]:
        return [Card(n, plots.label(run), label, heads, rows(run, kept[part])) for n, (run, kept) in enumerate(runs)]

    def sampled(run: Figures, kept: Mapping[str, np.ndarray]) -> list[Row]:
        return [Row(name, kept[name], cells(scores)) for name, scores in run["samplers"].items()]

    def swept(name: str) -> list[Card]:
        parameter = plots.SWEPT[name][2]

        def rows(run: Figures, kept: Mapping[str, np.ndarray]) -> list[Row]:
            pairs = zip(run[name], kept["pictures"], strict=True)
            return [Row(f"{point[parameter]:g}", pictures, cells(point)) for point, pictures in pairs]

        return cards(name, parameter, rows)

    return [
        Section(
            "samplers", "Where z-points are taken from",
            ["Each row shows the first ten decoded z-points of a sampler; the figures are those of all of them."],
            plots.sampler_charts(figures), [cards("samplers", "sampler", sampled)],
        ),
        Section(
            "cube", "Points of a cube", ["A column is one z-point, moved outwards from row to row."],
            plots.sweep_charts(figures, "cube"), [swept("cube")],
        ),
        Section(
            "sphere", "Points of a sphere", ["A column is one direction, at every radius."],
            plots.sweep_charts(figures, "sphere"), [swept("sphere")],
        ),
        Section(
            "gaussians", "Gaussians fitted to the z-points",
            ["The temperature multiplies the distance from the mean: 1 is as fitted. A column is one draw."],
            [*plots.sweep_charts(figures, "diagonal"), *plots.sweep_charts(figures, "gaussian")],
            [swept("diagonal"), swept("gaussian")],
        ),
        Section(
            "tasks", "Reconstructions and tasks", ["Test images: the input and what the model makes of it."],
            [], [_task_cards(figures, arrays)],
        ),
        Section(
            "between", "Between two images", ["From the z-point of one test image to that of another."],
            plots.path_charts(figures), _path_cards(figures, arrays),
        ),
        Section(
            "points", "Where the z-points lie", ["The training images' z-points, means of q(z|x)."],
            plots.statistics_charts(figures, [kept["statistics"]["plane"] for kept in arrays]),
        ),
    ]  # fmt: skip


def render(figures: Figures, sections: Sequence[Section], said: Sequence[str]) -> str:
    """The page: one HTML file that loads nothing from anywhere."""
    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    environment.filters["data_uri"] = data_uri
    return environment.from_string(TEMPLATE.read_text()).render(
        names=", ".join(run["run"] for run in figures["runs"]), about=_about(figures), variables=css_variables(),
        models=_models(figures), findings=said, sections=sections, method=_method(figures),
    )  # fmt: skip


def data_uri(pictures: np.ndarray) -> str:
    """Pictures uint8 (n, size, size, channels) in a row, as a WebP that a page holds within itself."""
    out = io.BytesIO()
    Image.fromarray(grid([pictures])).save(out, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _heads(figures: Figures) -> tuple[list[str], Callable[[Figures], list[str]]]:
    """The heads of the figures that this study's pictures have, and how one's figures are written under them."""
    known = [(key, *HEADS[key]) for key in HEADS if key in figures["runs"][0]["real"]]
    return [head for _, head, _ in known], lambda scores: [form.format(scores[key]) for key, _, form in known]


def _about(figures: Figures) -> str:
    data = figures["dataset"]
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items() if count)
    return f"{data['name']}, {data['size']} x {data['size']} pixels, {images} images"


def _models(figures: Figures) -> Table:
    heads, cells = _heads(figures)
    rows = [
        [
            run["run"],
            f"{run['kl_factor']:g}",
            str(run["z_dim"]),
            run["task"],
            str(run["epochs"]),
            f"{run['tasks'][run['task']]['psnr']:.1f}",
            *cells(run["samplers"]["reconstructions"]),
        ]
        for run in figures["runs"]
    ]
    blank = ["real test images", *[""] * 5, *cells(figures["runs"][0]["real"])]
    return Table(["run", "kl_factor", "z_dim", "task", "epochs", "test PSNR (dB)", *heads], [*rows, blank])


def _method(figures: Figures) -> list[str]:
    return [f"{figures['judged']} pictures were judged at each point."]


def _task_cards(figures: Figures, arrays: Arrays) -> list[Card]:
    cards = []
    for number, (run, kept) in enumerate(zip(figures["runs"], arrays, strict=True)):
        rows = []
        for task, scores in run["tasks"].items():
            before, after = kept["tasks"][task]
            rows += [
                Row(f"{task}: input", before, [f"{scores['input_psnr']:.1f}"]),
                Row("output", after, [f"{scores['psnr']:.1f}"]),
            ]
        cards.append(Card(number, plots.label(run), "task", ["PSNR (dB)"], rows))
    return cards


def _path_cards(figures: Figures, arrays: Arrays) -> list[list[Card]]:
    heads, cells = _heads(figures)
    groups = []
    for way in figures["runs"][0]["interpolation"]:
        group = []
        for number, (run, kept) in enumerate(zip(figures["runs"], arrays, strict=True)):
            pairs = zip(run["interpolation"][way], kept["interpolation"][way], strict=True)
            group.append(
                Card(
                    number,
                    plots.label(run),
                    way,
                    heads,
                    [Row(f"{point['t']:.0%}", pictures, cells(point)) for point, pictures in pairs],
                )
            )
        groups.append(group)
    return groups
