"""Which charts a study has: from figures to the charts of each section of its page."""

from itertools import pairwise
from typing import Any

import numpy as np

from jobs.study.charts import Axis, Chart, Mark, Series, dots, histogram, lines, scatter

Figures = dict[str, Any]
QUARTERS = (0, 0.25, 0.5, 0.75, 1)
# a figure's key, its title, its axis; hit rates are shares of 1
SHOWN = {
    "hit_rate": ("Face hit rate", Axis("pictures that show a face", percent=True, ticks=QUARTERS)),
    "hog_frechet": ("HOG-Frechet distance", Axis("distance to real images (0: alike)")),
    "swd": ("Sliced Wasserstein distance", Axis("distance x 1000 to real images (0: alike)")),
}
SWEPT = {
    "cube": ("in the cube", "boundary: components uniform between -b and b", "boundary"),
    "sphere": ("on the sphere", "radius of the sphere", "radius"),
    "diagonal": ("of the Gaussian without correlations", "temperature (1: as fitted)", "temperature"),
    "gaussian": ("of the full Gaussian", "temperature (1: as fitted)", "temperature"),
}
WAYS = {
    "linear": "along the straight line", "spherical": "along the arc (slerp)", "neighbours": "through neighbours",
}  # fmt: skip
MAIN = ("hit_rate", "hog_frechet")


def label(run: Figures) -> str:
    """A run's name as charts show it."""
    return f"{run['run']} (kl_factor {run['kl_factor']:g})"


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate of `n` (Wilson 1927)."""
    z = 1.96
    middle, spread = rate + z * z / (2 * n), z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def sweep_charts(figures: Figures, name: str) -> list[Chart]:
    """A chart of each main figure over a sweep's parameter, all runs together."""
    what, axis, parameter = SWEPT[name]
    charts = []
    for key in shown(figures):
        title, y = SHOWN[key]
        series = [_curve(label(run), run[name], parameter, key, figures["judged"]) for run in figures["runs"]]
        marks = _real(figures, key)
        if name == "sphere":
            roots = sorted({run["z_dim"] for run in figures["runs"]})
            marks += [Mark(f"sqrt(z_dim) = {z**0.5:.1f}", x=z**0.5) for z in roots]
        x = Axis(axis, log=True, ticks=series[0].x)
        charts.append(lines(f"{name}-{key}", f"{title} {what}", x, y, series, marks))
    return charts


def sampler_charts(figures: Figures) -> list[Chart]:
    """A chart of each main figure by sampler, a dot for each run."""
    names = list(figures["runs"][0]["samplers"])
    charts = []
    for key in shown(figures):
        title, axis = SHOWN[key]
        series = []
        for run in figures["runs"]:
            values = [run["samplers"][name][key] for name in names]
            series.append(Series(label(run), values, range(len(names)), _band(values, key, figures["judged"])))
        marks = [Mark(m.label, x=m.y) for m in _real(figures, key)]
        charts.append(dots(f"samplers-{key}", f"{title} by sampler", names, axis, series, (marks or [None])[0]))
    return charts


def path_charts(figures: Figures) -> list[Chart]:
    """Hit rate along the ways between two test images, a chart for each way."""
    charts = []
    for way in figures["runs"][0]["interpolation"]:
        for key in shown(figures)[:1]:
            title, y = SHOWN[key]
            rows = [(label(run), run["interpolation"][way]) for run in figures["runs"]]
            series = [_curve(name, points, "t", key, figures["pairs"]) for name, points in rows]
            x = Axis("share of the way", percent=True, ticks=QUARTERS)
            charts.append(lines(f"way-{way}-{key}", f"{title} {WAYS.get(way, way)}", x, y, series, _real(figures, key)))
    return charts


def shown(figures: Figures) -> list[str]:
    """The main figures that this study has."""
    return [key for key in MAIN if key in figures["runs"][0]["samplers"]["normal"]] or ["swd"]


def _curve(name: str, rows: list[Figures], parameter: str, key: str, n: int) -> Series:
    values = [row[key] for row in rows]
    return Series(name, [row[parameter] for row in rows], values, _band(values, key, n))


def _band(values: list[float], key: str, n: int) -> tuple[list[float], list[float]] | None:
    if key != "hit_rate":
        return None
    bounds = [wilson(value, n) for value in values]
    return [low for low, _ in bounds], [high for _, high in bounds]


def _real(figures: Figures, key: str) -> list[Mark]:
    real = figures["runs"][0]["real"].get(key)
    return [] if real is None else [Mark("real test images", y=real)]


def statistics_charts(figures: Figures, planes: list[np.ndarray]) -> list[Chart]:
    """Radius, principal axes, components and the plane of the first two axes."""
    runs = figures["runs"]
    names = [label(run) for run in runs]
    stats = [run["statistics"] for run in runs]
    radius = histogram(
        "radius", "How far out the z-points lie", Axis("radius / sqrt(z_dim)", log=True, ticks=(0.25, 0.5, 1, 2, 4, 8, 16)),
        [Series(n, _middles(s["radius_bins"]), s["radius_histogram"]) for n, s in zip(names, stats, strict=True)],
        [Mark("N(0, 1)", x=1)],
    )  # fmt: skip
    held = lines(
        "axes", "Variance that the principal axes hold", Axis("share of the z_dim principal axes", percent=True, ticks=QUARTERS),
        Axis("variance held", percent=True, ticks=QUARTERS),
        [Series(n, _shares(s["variance_held"]), [0, *s["variance_held"]]) for n, s in zip(names, stats, strict=True)],
        [Mark("90 %", y=0.9)],
    )  # fmt: skip
    spread = scatter(
        "components", "Mean and sd of each component",
        [(n, np.stack([s["mean"], s["sd"]], 1)) for n, s in zip(names, stats, strict=True)],
        Axis("mean"), Axis("sd"), Mark("N(0, 1)", x=0, y=1),
    )  # fmt: skip
    plane = scatter(
        "plane", "The z-points in the plane of their first two principal axes", list(zip(names, planes, strict=True)),
        Axis("first axis"), Axis("second axis"),
    )  # fmt: skip
    return [radius, held, spread, plane]


def _middles(edges: list[float]) -> list[float]:
    return [(low * high) ** 0.5 for low, high in pairwise(edges)]


def _shares(held: list[float]) -> list[float]:
    return [number / len(held) for number in range(len(held) + 1)]
