"""Which charts a study has: from its figures to the charts of each section of its page."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from jobs.study.charts import Axis, Chart, Mark, Series, dots, histogram, lines, matrices, scatter
from jobs.study.findings import Metrics, rate_of

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
# a figure's key: a chart's title, and the axis
SHOWN = {
    "faces": ("Face hit rate", Axis("pictures that show a face", percent=True, ticks=QUARTERS)),
    "recognised": ("Recognised", Axis("pictures that show a class", percent=True, ticks=QUARTERS)),
    "hog_frechet": ("HOG-Frechet distance", Axis("distance to real images", from_zero=True)),
}
# a sampler: where its charts say they are, what its parameter is, and that parameter's key
SWEPT = {
    "cube": ("in the cube", "boundary b: components uniform from -b to b", "boundary"),
    "sphere": ("on the sphere", "radius", "radius"),
    "diagonal": ("of the Gaussian without correlations", "temperature (1: as fitted)", "temperature"),
    "gaussian": ("of the full Gaussian", "temperature (1: as fitted)", "temperature"),
    "gmm": ("of the mixture of Gaussians", "temperature (1: as fitted)", "temperature"),
}
WAYS = {
    "straight": "along the straight line", "spherical": "along the arc", "neighbours": "from neighbour to neighbour",
}  # fmt: skip


def label(run: Metrics) -> str:
    """A run's name as charts show it."""
    return f"{run['run']} (kl_factor {run['kl_factor']:g})"


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate of `n` (Wilson 1927)."""
    z = 1.96
    middle, spread = rate + z * z / (2 * n), z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


def sampler_charts(figures: Metrics) -> list[Chart]:
    """How often something is shown, and the distance to real images, by sampler: a dot for each run."""
    names = list(figures["runs"][0]["samplers"])
    charts = []
    for key in (rate_of(figures), "hog_frechet"):
        title, axis = SHOWN[key]
        series = []
        for run in figures["runs"]:
            values = [run["samplers"][name][key] for name in names]
            series.append(Series(label(run), values, range(len(names)), _band(values, key, figures["judged"])))
        mark = Mark("real test images", x=figures["runs"][0]["real"][key])
        charts.append(dots(f"samplers-{key}", f"{title} by sampler", names, axis, series, mark))
    return charts


def sweep_charts(figures: Metrics, sampler: str) -> list[Chart]:
    """The same over a sampler's parameter: a line for each run."""
    where, text, parameter = SWEPT[sampler]
    charts = []
    for key in (rate_of(figures), "hog_frechet"):
        series = [_curve(run, run[sampler], parameter, key, figures["judged"]) for run in figures["runs"]]
        marks = [Mark("real test images", y=figures["runs"][0]["real"][key])]
        if sampler == "sphere":
            roots = sorted({run["points"]["sqrt_z_dim"] for run in figures["runs"]})
            marks += [Mark(f"sqrt(z_dim) = {root:.1f}", x=root) for root in roots]
        title, y = SHOWN[key]
        x = Axis(text, log=True, ticks=series[0].x)
        charts.append(lines(f"{sampler}-{key}", f"{title} {where}", x, y, series, marks))
    return charts


def way_charts(figures: Metrics) -> list[Chart]:
    """How often something is shown along the ways between two test images, a chart for each kind of way."""
    key = rate_of(figures)
    title, y = SHOWN[key]
    marks = [Mark("real test images", y=figures["runs"][0]["real"][key])]
    charts = []
    for name in figures["runs"][0]["ways"]["ways"]:
        series = [_curve(run, run["ways"]["ways"][name], "t", key, run["ways"]["pairs"]) for run in figures["runs"]]
        x = Axis("share of the way", percent=True, ticks=QUARTERS)
        charts.append(lines(f"way-{name}", f"{title} {WAYS.get(name, name)}", x, y, series, marks))
    return charts


def point_charts(figures: Metrics, arrays: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> list[Chart]:
    """Where the z-points lie: radius, axes, components, their correlations, KL, and two maps."""
    named = [(label(run), run["points"]) for run in figures["runs"]]
    radius = histogram(
        "radius", "How far out the z-points lie",
        Axis("radius / sqrt(z_dim)", log=True, ticks=(0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)),
        [Series(name, _middles(p["radius_bins"]), p["radius_shares"]) for name, p in named],
        [Mark("N(0, 1)", x=1)],
    )  # fmt: skip
    held = lines(
        "axes", "Variance that the principal axes hold",
        Axis("share of the principal axes, greatest first", percent=True, ticks=QUARTERS),
        Axis("variance held", percent=True, ticks=QUARTERS),
        [Series(name, *_held(p["variances"])) for name, p in named], [Mark("90 %", y=0.9)],
    )  # fmt: skip
    spread = scatter(
        "components", "Mean and sd of each component",
        [(name, np.stack([p["mean"], p["sd"]], 1)) for name, p in named], Axis("mean"), Axis("sd"),
        Mark("N(0, 1)", x=0, y=1),
    )  # fmt: skip
    maps = [
        scatter(
            key, title, [(name, kept["points"][key]) for (name, _), kept in zip(named, arrays, strict=True)],
            Axis(x), Axis(y),
        )
        for key, title, x, y in MAPS
    ]  # fmt: skip
    correlations = matrices(
        "correlations", "Correlations of the components",
        [(name, kept["points"]["correlation"]) for (name, _), kept in zip(named, arrays, strict=True)],
        Axis("component, greatest sd first"), "correlation",
    )  # fmt: skip
    return [radius, held, *_divergence(named), spread, correlations, *maps]


def _divergence(named: Sequence[tuple[str, Metrics]]) -> list[Chart]:
    if not any(max(p["kl"]) > 0 for _, p in named):  # plain AEs have none
        return []
    x, y = Axis("component, greatest KL first"), Axis("KL (nats, mean of images)", log=True)
    values = [sorted((kl for kl in p["kl"] if kl > 0), reverse=True) for _, p in named]
    series = [Series(name, range(1, len(kl) + 1), kl) for (name, _), kl in zip(named, values, strict=True)]
    return [lines("kl", "KL of each component", x, y, series)]


MAPS = [
    ("plane", "The z-points along their first two principal axes", "first axis", "second axis"),
    ("tsne", "A map that keeps neighbours together (t-SNE)", "", ""),
]


def _curve(run: Metrics, rows: Sequence[Metrics], parameter: str, key: str, n: int) -> Series:
    values = [row[key] for row in rows]
    return Series(label(run), [row[parameter] for row in rows], values, _band(values, key, n))


def _band(values: Sequence[float], key: str, n: int) -> tuple[list[float], list[float]] | None:
    if not SHOWN[key][1].percent:
        return None
    bounds = [wilson(value, n) for value in values]
    return [low for low, _ in bounds], [high for _, high in bounds]


def _middles(edges: Sequence[float]) -> list[float]:
    return [(low * high) ** 0.5 for low, high in pairwise(edges)]


def _held(variances: Sequence[float]) -> tuple[list[float], list[float]]:
    """Shares of the axes, and of the variance that they hold together."""
    total = sum(variances)
    shares = [n / len(variances) for n in range(len(variances) + 1)]
    return shares, [held / total for held in accumulate(variances, initial=0)]
