"""Compose the sections of a study's report: texts, charts, tables, and tables of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aecore.analysis import SWEEPS
from jobs.study import study_charts
from jobs.study.charts import Chart
from jobs.study.findings import FITTED_SAMPLERS
from jobs.study.metrics import (
    COLUMNS,
    DEFINITIONS,
    IMAGE_TABLE_KEYS,
    INCEPTION_KEYS,
    INTERPOLATIONS_KEY,
    RunArrays,
    RunMetrics,
    StudyMetrics,
    column_headers,
    format_cells,
    format_rate,
    run_label,
)


@dataclass(frozen=True)
class ImageRow:
    """A label, images uint8 (n, size, size, channels) side by side, and cells of text."""

    label: str
    images: np.ndarray
    cells: Sequence[str] = ()


@dataclass(frozen=True)
class ImageTable:
    """Rows of images of the run `run_index` of the study, None for several runs. `headers` are those of the cells.

    `name` is that of the table's PNG.
    """

    run_index: int | None
    title: str
    label_header: str
    headers: Sequence[str]
    rows: Sequence[ImageRow]
    name: str = ""


@dataclass(frozen=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A section of the report. Each group of `image_tables` has one table for each run, shown side by side."""

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = ()
    image_tables: Sequence[Sequence[ImageTable]] = ()
    tables: Sequence[Table] = ()


ImageRows = Callable[[RunMetrics, RunArrays], Iterator[ImageRow]]


def make_sections(study: StudyMetrics, arrays: Sequence[RunArrays]) -> list[Section]:
    """Return the sections in order. `arrays` has the arrays of each run."""
    runs = study["runs"]

    def image_tables(name: str, rows: ImageRows, label_header: str, headers: Sequence[str]) -> list[ImageTable]:
        return [
            ImageTable(
                index, run_label(run), label_header, headers, list(rows(run, run_arrays)), f"{name}-{run['run']}"
            )
            for index, (run, run_arrays) in enumerate(zip(runs, arrays, strict=True))
        ]

    metric_headers = column_headers(study, IMAGE_TABLE_KEYS)

    def sweep_tables(sampler: str) -> list[ImageTable]:
        parameter, _ = SWEEPS[sampler]
        tables = image_tables(sampler, lambda run, arrays: _sweep_rows(run, arrays, sampler), parameter, metric_headers)
        return [replace(table, title=f"{sampler}: {table.title}") for table in tables]

    return [
        Section(
            "samplers", "Samplers",
            "A sampler chooses z-points. A row shows its first ten images; the metrics are those of all its images. "
            "The sphere of own radius is that of the training z-points' mean radius, the other one of sqrt(z_dim).",
            study_charts.sampler_charts(study),
            [image_tables("samplers", _sampler_rows, "sampler", metric_headers)], _inception_tables(study),
        ),
        Section(
            "cube", "The cube", "Each column is one z-point; from row to row it moves outwards.",
            study_charts.sweep_charts(study, "cube"), [sweep_tables("cube")],
        ),
        Section(
            "sphere", "The sphere", "Each column is one direction; each row is one radius.",
            study_charts.sweep_charts(study, "sphere"), [sweep_tables("sphere")],
        ),
        Section(
            "gaussians", "Fitted Gaussians",
            "Gaussians fitted to the training images' z-points: without correlations, with correlations, and a "
            "mixture. The temperature multiplies the distance from the mean; 1 is the fit itself. Each column is one "
            f"random draw.{_fitted_mixtures_note(runs)}",
            [chart for sampler in FITTED_SAMPLERS for chart in study_charts.sweep_charts(study, sampler)],
            [sweep_tables(sampler) for sampler in FITTED_SAMPLERS],
        ),
        Section(
            "tasks", "Tasks",
            "Held-out images, the encoder's input for each task, and the decoder's output. The metrics compare input "
            "and output with the clean images; the column colours compares only the chroma (Cb and Cr). Each model was "
            "trained for one of the tasks.",
            image_tables=[image_tables("tasks", _task_rows, "task", _task_headers(runs[0]))],
        ),
        Section(
            "interpolation", "Between two images",
            "From the z-point of one test image (left) to that of another: on the straight line, on the arc around "
            "the mean z-point, and from neighbour to neighbour among z-points of training images.",
            study_charts.interpolation_charts(study), [image_tables("interpolation", _interpolation_rows, "path", [])],
        ),
        Section(
            "directions", "Directions",
            "The mean z-point, moved along the first principal axes of the z-points and along the dataset's "
            f"attributes, from -{runs[0]['directions']['sds']:g} to {runs[0]['directions']['sds']:g} standard "
            "deviations.",
            image_tables=[image_tables("directions", _direction_rows, "direction", [])],
        ),
        Section(
            "points", "The z-points",
            "The distribution of the training images' z-points, drawn from q(z|x) as in training. Correlations are "
            "those of the 64 latent dimensions with the greatest sd.",
            study_charts.z_point_charts(study, arrays), tables=[_z_point_table(study)],
        ),
    ]  # fmt: skip


def describe_dataset(study: StudyMetrics) -> str:
    """Return the dataset's name, image counts and image size as one line."""
    dataset = study["dataset"]
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset["images"].items() if count)
    return f"{dataset['name']}: {counts} images of {dataset['size']} x {dataset['size']} pixels"


def make_model_table(study: StudyMetrics) -> Table:
    """Return the table of the models: a row for each run, and one for the real images."""
    keys = tuple(COLUMNS)
    rows = []
    for run in study["runs"]:
        task = run["tasks"][run["task"]]
        rows.append([
            run["run"], f"{run['kl_factor']:g}", str(run["z_dim"]), run["task"], str(run["epochs"]),
            f"{task['psnr']:.1f}", f"{task['ssim']:.2f}", *format_cells(run["samplers"]["reconstructions"], keys),
        ])  # fmt: skip
    rows.append(["real test images", *[""] * 6, *format_cells(study["runs"][0]["real"], keys)])
    headers = ["run", "kl_factor", "z_dim", "task", "epochs", "PSNR (dB)", "SSIM", *column_headers(study, keys)]
    return Table(headers, rows)


def describe_method(study: StudyMetrics) -> list[str]:
    """Return the sample sizes, the statistics and the definitions of the metrics, as sentences."""
    dataset, run = study["dataset"], study["runs"][0]
    encoded, train_count = run["points"]["encoded"], dataset["images"]["train"]
    count = f"{encoded:,}" if encoded == train_count else f"{encoded:,} of {train_count:,}"
    return [
        f"Each sampler and each sweep value was scored on {study['judged']:,} images, each step between two images on "
        f"{run[INTERPOLATIONS_KEY]['pairs']}. "
        "Bands and bars of rates are 95 % intervals (Wilson 1927). Two rates differ "
        "significantly if they lie more than two standard errors apart (Agresti and Caffo 2000). For the best or worst "
        "of several rates the limit is higher, that of the studentized range (Tukey 1949).",
        f"The z-points are those of {count} training images, drawn from q(z|x). Held-out images are of the "
        f"{dataset['held_out']} split.",
        *(text for key, text in DEFINITIONS.items() if key in run["real"]),
    ]


def _sampler_rows(run: RunMetrics, arrays: RunArrays) -> Iterator[ImageRow]:
    yield ImageRow("real images", arrays["real"]["pictures"], format_cells(run["real"]))
    for sampler, scores in run["samplers"].items():
        yield ImageRow(sampler, arrays["samplers"][sampler], format_cells(scores))


def _inception_tables(study: StudyMetrics) -> list[Table]:
    """Return the table of the Inception metrics by sampler and run; no table if the study has none."""
    runs = study["runs"]
    headers = column_headers(study, INCEPTION_KEYS)
    if not headers:
        return []
    rows = [["real test images", "", *format_cells(runs[0]["real"], INCEPTION_KEYS)]]
    for sampler in runs[0]["samplers"]:
        rows += [[sampler, run["run"], *format_cells(run["samplers"][sampler], INCEPTION_KEYS)] for run in runs]
    return [Table(["sampler", "run", *headers], rows)]


def _sweep_rows(run: RunMetrics, arrays: RunArrays, sampler: str) -> Iterator[ImageRow]:
    parameter, _ = SWEEPS[sampler]
    for scores, images in zip(run[sampler], arrays[sampler]["pictures"], strict=True):
        yield ImageRow(f"{scores[parameter]:g}", images, format_cells(scores))


def _fitted_mixtures_note(runs: Sequence[RunMetrics]) -> str:
    names = ", ".join(run["run"] for run in runs if not run["points"]["mixture_stored"])
    if not names:
        return ""
    return f" Stored without a mixture: {names}. This study fitted one; an endpoint that serves the model has none."


TASK_SETTINGS = {"denoise": "sigma", "drop": "keep", "inpaint": "share"}  # the setting that a task's label shows


def _task_rows(run: RunMetrics, arrays: RunArrays) -> Iterator[ImageRow]:
    for kind, task in run["tasks"].items():
        clean, corrupted, output = arrays["tasks"][kind]
        if kind == "reconstruct":
            yield ImageRow("clean image", clean)
        else:
            setting = TASK_SETTINGS.get(kind)
            label = f"{kind}, {setting} {task['settings'][setting]:g}" if setting else kind
            yield ImageRow(label, corrupted, _similarity_cells(task, "input_"))
        yield ImageRow("output, own task" if task["trained"] else "output", output, _similarity_cells(task))


def _task_headers(run: RunMetrics) -> list[str]:
    has_colour = "chroma_psnr" in run["tasks"]["reconstruct"]
    return ["PSNR (dB)", "SSIM", *(["colours (dB)"] if has_colour else [])]


def _similarity_cells(task: RunMetrics, prefix: str = "") -> list[str]:
    cells = [f"{task[f'{prefix}psnr']:.1f}", f"{task[f'{prefix}ssim']:.2f}"]
    return [*cells, f"{task[f'{prefix}chroma_psnr']:.1f}"] if f"{prefix}chroma_psnr" in task else cells


def _interpolation_rows(run: RunMetrics, arrays: RunArrays) -> Iterator[ImageRow]:
    images_by_path = arrays[INTERPOLATIONS_KEY]
    paths = list(run[INTERPOLATIONS_KEY][INTERPOLATIONS_KEY])
    for pair in range(len(images_by_path[paths[0]])):
        for path in paths:
            yield ImageRow(f"{pair + 1}, {path}", images_by_path[path][pair])


def _direction_rows(run: RunMetrics, arrays: RunArrays) -> Iterator[ImageRow]:
    for name, images in arrays["directions"].items():
        yield ImageRow(name.replace("_", " "), images)


def _z_point_table(study: StudyMetrics) -> Table:
    runs = study["runs"]
    rows = [
        [header, *(format_value(run["points"][key]) for run in runs)]
        for key, (header, format_value) in Z_POINT_ROWS.items()
    ]
    return Table(["", *(run["run"] for run in runs)], rows)


# The key of a z-point metric: its row header, and the format of a value.
Z_POINT_ROWS: dict[str, tuple[str, Callable[[float], str]]] = {
    "mean_radius": ("mean radius", "{:.1f}".format),
    "sqrt_z_dim": ("sqrt(z_dim), the root mean square radius of N(0, 1)", "{:.1f}".format),
    "centre_radius": ("distance of the mean from the origin", "{:.2f}".format),
    "within_20": ("values with |x| < 20", format_rate),
    "mean_sd": ("sd per latent dimension, mean", "{:.2f}".format),
    "mean_abs_skew": ("|skew| per latent dimension, mean", "{:.2f}".format),
    "mean_kurtosis": ("excess kurtosis per latent dimension, mean", "{:.2f}".format),
    "core_distance": ("distance of the core from normal (0: normal, 0.05: uniform)", "{:.3f}".format),
    "mean_abs_correlation": ("|correlation| of two latent dimensions, mean", "{:.2f}".format),
    "axes_90": ("principal axes that explain 90 % of the variance", "{}".format),
    "axes_99": ("principal axes that explain 99 % of the variance", "{}".format),
    "kl_sum": ("KL, nats", "{:,.1f}".format),
    "active_units": ("active units", "{}".format),
    "fragments": ("fragments of the neighbour graph", "{}".format),
    "silhouette": ("silhouette of the best clustering", "{:.2f}".format),
    "gaussian_silhouette": ("silhouette of the best clustering of one Gaussian", "{:.2f}".format),
}
