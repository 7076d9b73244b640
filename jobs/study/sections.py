"""What a study's page shows, section by section: its texts, charts, cards of pictures and tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.study import plots
from jobs.study.charts import Chart
from jobs.study.findings import Figures, percent

Arrays = Sequence[Mapping[str, Mapping[str, np.ndarray]]]  # of each run: part, name, array
# a figure's key: its head in a table, and how a value is written
HEADS: dict[str, tuple[str, Callable[[float], str]]] = {
    "hit_rate": ("faces", percent), "hog_frechet": ("HOG-Frechet", "{:.2f}".format), "swd": ("SWD", "{:.0f}".format),
}  # fmt: skip
IN_CARDS = ("hit_rate", "hog_frechet")


@dataclass(frozen=True)
class Row:
    """Pictures side by side, uint8 (n, size, size, channels), between a label and cells."""

    label: str
    pictures: np.ndarray
    cells: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """Rows of pictures of one run, the study's `number`th; `label` and `heads` are over the columns."""

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
    """`cards`: rows of cards, those of the runs beside one another."""

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = ()
    cards: Sequence[Sequence[Card]] = ()
    tables: Sequence[Table] = ()


Rows = Callable[[Figures, Mapping[str, Mapping[str, np.ndarray]]], Iterator[Row]]


def make_sections(figures: Figures, arrays: Arrays) -> list[Section]:
    """The sections of the page, in order."""

    def cards(rows: Rows, label: str, heads: Sequence[str] = _heads(figures, IN_CARDS)) -> list[Card]:
        runs = zip(figures["runs"], arrays, strict=True)
        return [Card(n, plots.label(run), label, heads, list(rows(run, kept))) for n, (run, kept) in enumerate(runs)]

    def swept(name: str) -> list[Card]:
        return cards(lambda run, kept: _swept(run, kept, name), plots.SWEPT[name][2])

    return [
        Section(
            "samplers", "Samplers",
            "Where z-points are taken from: a row shows the first ten pictures of a sampler, the figures are those of all.",
            plots.sampler_charts(figures), [cards(_sampled, "sampler")],
        ),
        Section(
            "cube", "The cube", "A column is one z-point, moved outwards from row to row.",
            plots.sweep_charts(figures, "cube"), [swept("cube")],
        ),
        Section(
            "sphere", "The sphere", "A column is one direction, at every radius.",
            plots.sweep_charts(figures, "sphere"), [swept("sphere")],
        ),
        Section(
            "gaussians", "Fitted Gaussians",
            "Fitted to the training images' z-points, first without correlations, then with them. The temperature "
            "multiplies the distance from their mean: 1 is as fitted. A column is one draw.",
            [*plots.sweep_charts(figures, "diagonal"), *plots.sweep_charts(figures, "gaussian")],
            [swept("diagonal"), swept("gaussian")],
        ),
        Section(
            "tasks", "Tasks",
            "Test images, what the encoder sees of them, and what the decoder makes of that; the figures compare both "
            "with the clean image. A model has been trained for one of these tasks only.",
            [], [cards(_tasks, "task", ["PSNR (dB)", "SSIM"])],
        ),
        Section(
            "between", "Between two images",
            "From the z-point of one test image to that of another, on different ways.",
            plots.path_charts(figures), [cards(_paths, "way", [])],
        ),
        Section(
            "points", "The z-points", "Where the training images' z-points lie, as the decoder saw them in training.",
            plots.statistics_charts(figures, arrays), tables=[_statistics(figures)],
        ),
    ]  # fmt: skip


def about(figures: Figures) -> str:
    """What the study was made on, in a line."""
    data = figures["dataset"]
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items() if count)
    return f"{data['name']}: {images} images of {data['size']} x {data['size']} pixels"


def models(figures: Figures) -> Table:
    """A row for each run, and one for the real images."""
    runs, keys = figures["runs"], tuple(HEADS)
    own = [run["tasks"][run["task"]] for run in runs]
    rows = [
        [run["run"], f"{run['kl_factor']:g}", str(run["z_dim"]), run["task"], str(run["epochs"]),
         f"{task['psnr']:.1f}", f"{task['ssim']:.2f}", *_cells(run["samplers"]["reconstructions"], keys)]
        for run, task in zip(runs, own, strict=True)
    ]  # fmt: skip
    real = ["real test images", *[""] * 6, *_cells(runs[0]["real"], keys)]
    heads = ["run", "kl_factor", "z_dim", "task", "epochs", "PSNR (dB)", "SSIM", *_heads(figures, keys)]
    return Table(heads, [*rows, real])


def method(figures: Figures) -> list[str]:
    """How the figures came about, in sentences."""
    return [
        f"{figures['judged']:,} pictures were judged at each point; the bands and bars around hit rates are 95 % "
        "intervals (Wilson 1927).",
    ]


def _heads(figures: Figures, keys: Sequence[str]) -> list[str]:
    return [HEADS[key][0] for key in keys if key in figures["runs"][0]["real"]]


def _cells(scores: Figures, keys: Sequence[str] = IN_CARDS) -> list[str]:
    return [HEADS[key][1](scores[key]) for key in keys if key in scores]


def _sampled(run: Figures, kept: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    yield Row("real images", kept["real"]["pictures"], _cells(run["real"]))
    for name, scores in run["samplers"].items():
        yield Row(name, kept["samplers"][name], _cells(scores))


def _swept(run: Figures, kept: Mapping[str, Mapping[str, np.ndarray]], name: str) -> Iterator[Row]:
    for point, pictures in zip(run[name], kept[name]["pictures"], strict=True):
        yield Row(f"{point[plots.SWEPT[name][2]]:g}", pictures, _cells(point))


def _tasks(run: Figures, kept: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    for kind, task in run["tasks"].items():
        clean, seen, made = kept["tasks"][kind]
        if kind == "reconstruct":
            yield Row("clean image", clean)
        else:
            settings = ", ".join(f"{key} {value}" for key, value in task["settings"].items())
            yield Row(f"{kind} ({settings})" if settings else kind, seen, _closeness(task, "input_"))
        yield Row("output (own task)" if task["trained"] else "output", made, _closeness(task))


def _closeness(task: Figures, prefix: str = "") -> list[str]:
    return [f"{task[f'{prefix}psnr']:.1f}", f"{task[f'{prefix}ssim']:.2f}"]


def _paths(run: Figures, kept: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[Row]:
    for name, pairs in kept["interpolation"].items():
        for number, pictures in enumerate(pairs, 1):
            yield Row(f"{number}: {name}", pictures)


def _statistics(figures: Figures) -> Table:
    runs = figures["runs"]
    rows = [[text, *(write(run["statistics"]) for run in runs)] for text, write in FACTS]
    return Table(["", *(run["run"] for run in runs)], rows)


FACTS: list[tuple[str, Callable[[Figures], str]]] = [
    ("mean radius", lambda s: f"{s['radius_mean']:.1f}"),
    ("components with |x| < 20", lambda s: percent(s["within_20"])),
    ("principal axes that hold 90 % of the variance", lambda s: str(s["axes_90"])),
    ("principal axes that hold 99 % of the variance", lambda s: str(s["axes_99"])),
]
