"""The charts of a study, drawn with matplotlib: PNG for a folder, and SVG that takes a page's light or dark colours.

A series is told apart by its colour (Okabe and Ito 2008, seen alike with any colour vision) and by its marker. Data
keep their colours in a PNG; in the SVG each becomes a CSS variable, since ink on white cannot be read on black.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GRID = "#2b2b2b", "#dddddd"
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "font.family": "sans-serif", "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "legend.frameon": False,
    "lines.linewidth": 2, "lines.markersize": 5.5, "svg.fonttype": "none", "svg.hashsalt": "zpoint",
}  # fmt: skip
DPI = 150


@dataclass(frozen=True)
class Series:
    """One line: `y` at `x`, both of one length; `band` holds the bounds below and above `y`, where there are some."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis says: its label with the unit, its scale and where it has ticks; `percent` shows 1 as 100%."""

    label: str
    log: bool = False
    percent: bool = False
    ticks: Sequence[float] = ()
    from_zero: bool = False


@dataclass(frozen=True)
class Mark:
    """A dashed line across the chart: at `y` (say, what real images get) or at `x`."""

    label: str
    y: float | None = None
    x: float | None = None


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its PNG, and SVG text that takes its ink and colours from the page."""

    name: str
    title: str
    png: bytes = field(repr=False)
    svg: str = field(repr=False)


def lines(name: str, title: str, x: Axis, y: Axis, series: Sequence[Series], marks: Sequence[Mark] = ()) -> Chart:
    """Lines with markers over `x`, with a band where a series has one."""
    with rc_context(STYLE):
        figure, axes = _figure()
        for number, one in enumerate(series):
            marker = MARKERS[number % len(MARKERS)] if len(one.x) <= 20 else None
            axes.plot(one.x, one.y, color=colour(number), marker=marker, label=one.name, clip_on=False, zorder=3)
            if one.band:
                axes.fill_between(one.x, *one.band, color=colour(number), alpha=0.15, linewidth=0)
        _finish(axes, x, y, marks)
        return _drawn(figure, axes, name, title)


def dots(name: str, title: str, rows: Sequence[str], x: Axis, series: Sequence[Series], mark: Mark | None) -> Chart:
    """A row for each of `rows`, in it a dot for each series' value; a series' `y` is the row's number."""
    with rc_context(STYLE):
        figure, axes = _figure(height=1.1 + 0.32 * len(rows))
        for number, one in enumerate(series):
            shift = (number - (len(series) - 1) / 2) * 0.22  # so that equal values do not hide one another
            places = [row + shift for row in one.y]
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(one.x, places, marker, color=colour(number), label=one.name, clip_on=False, zorder=3, ms=7)
            if one.band:
                axes.hlines(places, *one.band, color=colour(number), alpha=0.5, linewidth=2)
        _finish(axes, x, Axis(""), [mark] if mark else [])
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        return _drawn(figure, axes, name, title)


def histogram(name: str, title: str, x: Axis, series: Sequence[Series], marks: Sequence[Mark] = ()) -> Chart:
    """Filled outlines of densities: a series' `y` over `x`, the middles of its bins."""
    with rc_context(STYLE):
        figure, axes = _figure()
        for number, one in enumerate(series):
            axes.fill_between(one.x, one.y, step="mid", color=colour(number), alpha=0.25, linewidth=0)
            axes.step(one.x, one.y, where="mid", color=colour(number), label=one.name)
        _finish(axes, x, Axis("share of the z-points in a bin", percent=True), marks)
        return _drawn(figure, axes, name, title)


def scatter(
    name: str, title: str, panels: Sequence[tuple[str, np.ndarray]], x: Axis, y: Axis, cross: Mark | None = None
) -> Chart:
    """A cloud of points `(n, 2)` for each panel, side by side, each on axes of its own; `cross` marks one place."""
    with rc_context(STYLE):
        figure, every = _figure(len(panels), width=max(5.4, 2.9 * len(panels)), height=3.1)
        for number, (axes, (label, points)) in enumerate(zip(np.atleast_1d(every), panels, strict=True)):
            axes.scatter(*points.T, s=7, alpha=0.45, linewidths=0, color=colour(number))
            if cross:
                axes.plot(cross.x, cross.y, "+", color=INK, ms=11, mew=2, label=cross.label)
            axes.set_title(label, fontweight="normal")
            _finish(axes, x, y if number == 0 else Axis(""), [])
            if not x.label:  # a map without coordinates
                axes.set(xticks=[], yticks=[])
        return _drawn(figure, None, name, title)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def css_variables() -> dict[str, str]:
    """Name and light value of each CSS variable that the SVGs use."""
    return {"ink": INK, "grid": GRID, **{f"series{n}": value for n, value in enumerate(COLOURS)}}


def _figure(columns: int = 1, width: float = 5.4, height: float = 3.3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _finish(axes: Any, x: Axis, y: Axis, marks: Sequence[Mark]) -> None:
    for place, axis, set_scale in ((axes.xaxis, x, axes.set_xscale), (axes.yaxis, y, axes.set_yscale)):
        place.set_label_text(axis.label)
        if axis.log:
            set_scale("log")
        if axis.ticks:
            place.set_major_locator(FixedLocator(axis.ticks))
            place.set_minor_locator(NullLocator())
            place.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if axis.percent:
            place.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    if y.percent and y.ticks:
        axes.set_ylim(0, 1)
    if x.percent and x.ticks:
        axes.set_xlim(-0.02, 1.02)
    if x.from_zero:
        axes.set_xlim(left=0)
    if y.from_zero:
        axes.set_ylim(bottom=0)
    for mark in marks:
        draw, where = (axes.axhline, mark.y) if mark.y is not None else (axes.axvline, mark.x)
        draw(where, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label=mark.label, zorder=2)
    axes.tick_params(length=0)


def _drawn(figure: Figure, legend: Any, name: str, title: str) -> Chart:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10.5)
    if legend is not None:
        handles, labels = legend.get_legend_handles_labels()
        if len(handles) > 1:
            figure.legend(
                handles,
                labels,
                loc="outside lower left",
                ncols=1 if max(map(len, labels)) > 32 else 2,
                handlelength=2.2,
                columnspacing=1.2,
            )
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white")
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(name, title, png.getvalue(), _themed(svg.getvalue()))


def _themed(svg: str) -> str:
    """`svg` as part of a page: without its prologue and fixed size, colours as the page's variables."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]+"([^>]*?) width="[^"]+"', r"\1\2", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]+"([^>]*?) height="[^"]+"', r"\1\2", svg, count=1)
    for variable, value in css_variables().items():
        svg = svg.replace(value, f"var(--{variable})")
    return svg
