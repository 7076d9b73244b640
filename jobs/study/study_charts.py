"""Choose the charts of each section of a study's report, from its metrics and arrays."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from aecore.analysis import SWEEPS
from jobs.study.charts import (
    Axis,
    Chart,
    Reference,
    Series,
    dot_chart,
    histogram_chart,
    line_chart,
    matrix_chart,
    scatter_chart,
)
from jobs.study.metrics import (
    INTERPOLATIONS_KEY,
    RATE_TARGETS,
    RunArrays,
    RunMetrics,
    StudyMetrics,
    confidence_interval,
    rate_key,
    run_label,
)

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
# metric: chart title and value axis
CHARTED_METRICS = {
    "faces": ("Face hit rate", Axis("images that show a face", percent=True, ticks=QUARTERS)),
    "recognised": ("Recognised", Axis("images that show a class", percent=True, ticks=QUARTERS)),
    "hog_frechet": ("HOG-Frechet distance", Axis("distance to real images", from_zero=True)),
}
# sampler of a sweep: how chart titles refer to it, and the label of its parameter
SWEEP_LABELS = {
    "cube": ("in the cube", "boundary b: uniform from -b to b in each dimension"),
    "sphere": ("on the sphere", "radius"),
    "diagonal": ("of the Gaussian without correlations", "temperature (1: as fitted)"),
    "gaussian": ("of the full Gaussian", "temperature (1: as fitted)"),
    "gmm": ("of the mixture of Gaussians", "temperature (1: as fitted)"),
}
PATH_LABELS = {
    "straight": "along the straight line", "spherical": "along the arc", "neighbours": "from neighbour to neighbour",
}  # fmt: skip


def sampler_charts(study: StudyMetrics) -> list[Chart]:
    """Chart the rate and the distance to real images by sampler, with a dot for each run."""
    runs = study["runs"]
    samplers = list(runs[0]["samplers"])
    charts = []
    for key in _charted_keys(study):
        title, axis = CHARTED_METRICS[key]
        series = []
        for run in runs:
            values = [run["samplers"][sampler][key] for sampler in samplers]
            series.append(Series(run_label(run), values, range(len(samplers)), _band(values, key, study["judged"])))
        real = Reference("real test images", x=runs[0]["real"][key])
        charts.append(dot_chart(f"samplers-{key}", f"{title} by sampler", samplers, axis, series, real))
    return charts


def sweep_charts(study: StudyMetrics, sampler: str) -> list[Chart]:
    """Chart the rate and the distance to real images over a sampler's parameter, with a line for each run."""
    runs = study["runs"]
    phrase, x_label = SWEEP_LABELS[sampler]
    parameter, values = SWEEPS[sampler]
    charts = []
    for key in _charted_keys(study):
        title, y = CHARTED_METRICS[key]
        series = [_metric_series(run, run[sampler], parameter, key, study["judged"]) for run in runs]
        references = [Reference("real test images", y=runs[0]["real"][key])]
        if sampler == "sphere":
            radii = sorted({run["points"]["sqrt_z_dim"] for run in runs})
            references += [Reference(f"sqrt(z_dim) = {radius:.1f}", x=radius) for radius in radii]
        x = Axis(x_label, log=True, ticks=values)
        charts.append(line_chart(f"{sampler}-{key}", f"{title} {phrase}", x, y, series, references))
    return charts


def interpolation_charts(study: StudyMetrics) -> list[Chart]:
    """Chart the rate between two test images, a chart for each kind of path."""
    runs = study["runs"]
    key = rate_key(runs[0]["real"])
    title, y = CHARTED_METRICS[key]
    x = Axis("position on the path", percent=True, ticks=QUARTERS)
    real = Reference("real test images", y=runs[0]["real"][key])
    charts = []
    interpolations = [run[INTERPOLATIONS_KEY] for run in runs]
    for path in interpolations[0][INTERPOLATIONS_KEY]:
        series = [
            _metric_series(run, interpolation[INTERPOLATIONS_KEY][path], "t", key, interpolation["pairs"])
            for run, interpolation in zip(runs, interpolations, strict=True)
        ]
        label = PATH_LABELS.get(path, path)
        charts.append(line_chart(f"interpolation-{path}", f"{title} {label}", x, y, series, [real]))
    return charts


def z_point_charts(study: StudyMetrics, arrays: Sequence[RunArrays]) -> list[Chart]:
    """Chart the distribution of the training images' z-points."""
    runs = study["runs"]
    return [
        radius_chart(runs), variance_chart(runs), *kl_charts(runs), moments_chart(runs),
        correlation_chart(runs, arrays), *map_charts(runs, arrays),
    ]  # fmt: skip


def radius_chart(runs: Sequence[RunMetrics]) -> Chart:
    x = Axis("radius / sqrt(z_dim)", log=True, ticks=(0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32))
    y = Axis("share of the z-points in a bin", percent=True)
    series = []
    for run in runs:
        centres = [(low * high) ** 0.5 for low, high in pairwise(run["points"]["radius_bins"])]
        series.append(Series(run_label(run), centres, run["points"]["radius_shares"]))
    title = "Distance of the z-points from the origin"
    return histogram_chart("radius", title, x, y, series, [Reference("N(0, 1)", x=1)])


def variance_chart(runs: Sequence[RunMetrics]) -> Chart:
    x = Axis("share of the principal axes, greatest first", percent=True, ticks=QUARTERS)
    y = Axis("explained variance", percent=True, ticks=QUARTERS)
    series = []
    for run in runs:
        variances = run["points"]["variances"]
        total = sum(variances) or 1.0  # of equal z-points it is 0
        axis_shares = [n / len(variances) for n in range(len(variances) + 1)]
        explained = [cumulative / total for cumulative in accumulate(variances, initial=0)]
        series.append(Series(run_label(run), axis_shares, explained))
    return line_chart("axes", "Variance explained by the principal axes", x, y, series, [Reference("90 %", y=0.9)])


def kl_charts(runs: Sequence[RunMetrics]) -> list[Chart]:
    """Return the chart of the KL per latent dimension; no chart if all runs are plain AEs, which have no KL."""
    if not any(max(run["points"]["kl"]) > 0 for run in runs):
        return []
    x, y = Axis("latent dimension, greatest KL first"), Axis("KL (nats, mean over images)", log=True)
    series = []
    for run in runs:
        kl_per_dim = sorted((kl for kl in run["points"]["kl"] if kl > 0), reverse=True)
        series.append(Series(run_label(run), range(1, len(kl_per_dim) + 1), kl_per_dim))
    return [line_chart("kl", "KL per latent dimension", x, y, series)]


def moments_chart(runs: Sequence[RunMetrics]) -> Chart:
    panels = [(run_label(run), np.stack([run["points"]["mean"], run["points"]["sd"]], 1)) for run in runs]
    title = "Mean and sd of each latent dimension"
    return scatter_chart("components", title, panels, Axis("mean"), Axis("sd"), Reference("N(0, 1)", x=0, y=1))


def correlation_chart(runs: Sequence[RunMetrics], arrays: Sequence[RunArrays]) -> Chart:
    axis = Axis("latent dimension, greatest sd first")
    title = "Correlations of the latent dimensions"
    return matrix_chart("correlations", title, _z_point_panels(runs, arrays, "correlation"), axis, "correlation")


def map_charts(runs: Sequence[RunMetrics], arrays: Sequence[RunArrays]) -> list[Chart]:
    """Chart two maps of the z-points: their first two principal axes, and t-SNE, whose axes have no meaning."""
    plane, tsne = (_z_point_panels(runs, arrays, name) for name in ("plane", "tsne"))
    return [
        scatter_chart(
            "plane", "The z-points on their first two principal axes", plane, Axis("first axis"), Axis("second axis")
        ),
        scatter_chart("tsne", "The z-points in a t-SNE map, which preserves neighbours", tsne, Axis(""), Axis("")),
    ]


def _charted_keys(study: StudyMetrics) -> tuple[str, str]:
    return rate_key(study["runs"][0]["real"]), "hog_frechet"


def _metric_series(run: RunMetrics, rows: Sequence[dict[str, float]], parameter: str, key: str, n: int) -> Series:
    values = [row[key] for row in rows]
    return Series(run_label(run), [row[parameter] for row in rows], values, _band(values, key, n))


def _band(values: Sequence[float], key: str, n: int) -> tuple[list[float], list[float]] | None:
    if key not in RATE_TARGETS:
        return None
    intervals = [confidence_interval(rate, n) for rate in values]
    return [low for low, _ in intervals], [high for _, high in intervals]


def _z_point_panels(runs: Sequence[RunMetrics], arrays: Sequence[RunArrays], name: str) -> list[tuple[str, np.ndarray]]:
    return [(run_label(run), run_arrays["points"][name]) for run, run_arrays in zip(runs, arrays, strict=True)]
