"""Draw charts with matplotlib: a PNG for a folder, and an SVG with the light or dark colours of a page.

Each series has a colour (Okabe and Ito 2008, distinct with any colour vision) and a marker. A PNG has fixed colours. In
the SVG each colour is a CSS variable, since dark ink is unreadable on a dark page.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, MaxNLocator, NullLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, GRID = "#2b2b2b", "#dddddd"
DIVERGING_COLORMAP = "RdBu_r"  # ColorBrewer's: blue to red, distinct with any colour vision
SEQUENTIAL_COLORMAP = "cividis"  # of even lightness steps, and readable with any colour vision
MIN_COLOUR_LIMIT = 0.25  # of a matrix: without it the strongest of weak correlations would look strong
DPI = 150
PANEL_TITLE_WIDTH = 26  # characters in a line
MAX_COLUMNS = 3  # of panels: the page shows a chart in the width of a card
LEGEND_ROWS, LEGEND_ROW_HEIGHT = 3, 0.2  # rows that a figure has room for; inches that it grows by for each one more
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "font.family": "sans-serif", "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8, "legend.frameon": False,
    "lines.linewidth": 2, "lines.markersize": 5.5, "svg.fonttype": "none", "svg.hashsalt": "zpoint",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The values `y` at `x`, of one length; `band` holds lower and upper bounds of `y`.

    In a line chart `joined` draws a line through the points, `muted` a thin one that the legend lacks, and `labels` are
    written beside the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    joined: bool = True
    muted: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """An axis: label with unit, scale and ticks. `percent` writes 1 as 100%."""

    label: str
    log: bool = False
    percent: bool = False
    ticks: Sequence[float] = ()
    from_zero: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Reference:
    """A labelled reference value: a dashed line at `x` or at `y`, or in a scatter chart a cross at both."""

    label: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Chart:
    """A rendered chart. The SVG takes its colours from the CSS variables of `css_variables`."""

    name: str
    title: str
    png: bytes = field(repr=False)
    svg: str = field(repr=False)


def line_chart(
    name: str, title: str, x: Axis, y: Axis, series: Sequence[Series], references: Sequence[Reference] = ()
) -> Chart:
    """Draw lines, with markers if they have few points, and the bands of those series that have one."""
    with rc_context(STYLE):
        fig, axes = _new_figure()
        for line in (line for line in series if line.muted):
            marker = "." if len(line.x) == 1 else None  # a line through one point shows nothing
            axes.plot(line.x, line.y, color=INK, alpha=0.3, linewidth=1, marker=marker, zorder=2)
        for index, line in enumerate(line for line in series if not line.muted):
            marker = MARKERS[index % len(MARKERS)] if len(line.x) <= 20 or not line.joined else None
            axes.plot(
                line.x, line.y, linestyle="-" if line.joined else "none", color=_colour(index), marker=marker,
                label=line.name, clip_on=False, zorder=3,
            )  # fmt: skip
            for label_index, (x_value, y_value, text) in enumerate(zip(line.x, line.y, line.labels, strict=False)):
                # In turn above and below, since neighbours may be close; on the sides where a rising line is not.
                offset, side = ((5, -11), "left") if label_index % 2 else ((-5, 4), "right")
                axes.annotate(text, (x_value, y_value), offset, textcoords="offset points", fontsize=8, ha=side)
            if line.band:
                axes.fill_between(line.x, *line.band, color=_colour(index), alpha=0.15, linewidth=0)
        _format_axes(axes, x, y, references)
        _add_legend(fig, axes)
        return _render(fig, name, title)


def dot_chart(
    name: str, title: str, row_labels: Sequence[str], x: Axis, series: Sequence[Series], reference: Reference
) -> Chart:
    """Draw labelled rows with a dot for each series. In a series `x` is the value and `y` the index of the row."""
    with rc_context(STYLE):
        fig, axes = _new_figure(height=1.1 + max(0.32, 0.1 * len(series)) * len(row_labels))
        step = min(0.22, 0.8 / len(series))  # keeps equal values of two series visible, and all of a row together
        for index, dots in enumerate(series):
            shift = (index - (len(series) - 1) / 2) * step
            heights = [row + shift for row in dots.y]
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(dots.x, heights, marker, color=_colour(index), label=dots.name, clip_on=False, zorder=3, ms=7)
            if dots.band:
                axes.hlines(heights, *dots.band, color=_colour(index), alpha=0.5, linewidth=2)
        _format_axes(axes, x, Axis(""), [reference])
        axes.set_yticks(range(len(row_labels)), row_labels)
        axes.set_ylim(len(row_labels) - 0.5, -0.5)
        _add_legend(fig, axes)
        return _render(fig, name, title)


def histogram_chart(
    name: str, title: str, x: Axis, y: Axis, series: Sequence[Series], references: Sequence[Reference] = ()
) -> Chart:
    """Draw filled step outlines. In a series `x` holds the bins' centres."""
    with rc_context(STYLE):
        fig, axes = _new_figure()
        for index, bins in enumerate(series):
            axes.fill_between(bins.x, bins.y, step="mid", color=_colour(index), alpha=0.25, linewidth=0)
            axes.step(bins.x, bins.y, where="mid", color=_colour(index), label=bins.name)
        _format_axes(axes, x, y, references)
        _add_legend(fig, axes)
        return _render(fig, name, title)


def value_chart(
    name: str, title: str, x: Axis, y: Axis, points: Series, values: Sequence[float], value_label: str
) -> Chart:
    """Draw points coloured by a value of each."""
    with rc_context(STYLE):
        fig, axes = _new_figure()
        dots = axes.scatter(
            points.x, points.y, c=values, cmap=SEQUENTIAL_COLORMAP, s=60, linewidths=0.8, edgecolors=INK,
            clip_on=False, zorder=3,
        )  # fmt: skip
        _format_axes(axes, x, y)
        colour_bar: Any = fig.colorbar(dots, ax=axes, label=value_label)
        colour_bar.solids.set_rasterized(True)  # otherwise the SVG has one shape for each of its colours
        return _render(fig, name, title)


def span_chart(name: str, title: str, row_labels: Sequence[str], x: Axis, series: Sequence[Series]) -> Chart:
    """Draw labelled rows of bars. In a series `y` is a bar's row and `x` its length, or `band` its ends."""
    with rc_context(STYLE):
        fig, axes = _new_figure(height=1.2 + 0.24 * len(row_labels))
        for index, bars in enumerate(series):
            starts, ends = bars.band or ([0.0] * len(bars.x), bars.x)
            widths = [end - start for start, end in zip(starts, ends, strict=True)]
            axes.barh(bars.y, widths, height=0.66, left=starts, color=_colour(index), label=bars.name, zorder=3)
        _format_axes(axes, x, Axis(""))
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(row_labels)), row_labels)
        axes.set_ylim(len(row_labels) - 0.5, -0.5)
        _add_legend(fig, axes)
        return _render(fig, name, title)


def scatter_chart(
    name: str, title: str, panels: Sequence[tuple[str, np.ndarray]], x: Axis, y: Axis,
    reference: Reference | None = None,
) -> Chart:  # fmt: skip
    """Draw labelled panels of points `(n, 2)`, each with axes of its own."""
    with rc_context(STYLE):
        fig, all_axes = _new_panels(len(panels), panel_height=2.8)
        for index, (axes, (label, points)) in enumerate(zip(all_axes, panels, strict=True)):
            axes.scatter(*points.T, s=7, alpha=0.45, linewidths=0, color=_colour(index))
            if reference:
                axes.plot(reference.x, reference.y, "+", color=INK, ms=11, mew=2, label=reference.label)
            axes.set_title(fill(label, PANEL_TITLE_WIDTH), fontweight="normal")
            _format_axes(axes, x, y if axes.get_subplotspec().is_first_col() else Axis(""))
            if not x.label:  # a map without coordinates
                axes.set(xticks=[], yticks=[])
        return _render(fig, name, title)


def matrix_chart(
    name: str, title: str, panels: Sequence[tuple[str, np.ndarray]], axis: Axis, value_label: str
) -> Chart:
    """Draw labelled panels of matrices `(n, n)`, values from -1 to 1, rows and columns on `axis`.

    The panels share one colour scale, labelled `value_label`, up to the greatest absolute value off the diagonals. The
    diagonals are blank.
    """
    matrices = [np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix) for _, matrix in panels]
    limit = max([MIN_COLOUR_LIMIT, *(float(np.nanmax(np.abs(matrix))) for matrix in matrices if len(matrix) > 1)])
    colours = ScalarMappable(Normalize(-limit, limit), DIVERGING_COLORMAP)
    with rc_context(STYLE):
        fig, all_axes = _new_panels(len(panels), panel_height=3.6, margin=0.9)
        for axes, (label, _), matrix in zip(all_axes, panels, matrices, strict=True):
            side = (0.5, len(matrix) + 0.5)  # the first row is number 1
            axes.imshow(matrix, colours.cmap, colours.norm, extent=(*side, *side[::-1]))
            axes.set_title(fill(label, PANEL_TITLE_WIDTH), fontweight="normal")
            axes.grid(visible=False)
            _format_axes(axes, axis, axis if axes.get_subplotspec().is_first_col() else Axis(""))
            for mpl_axis in (axes.xaxis, axes.yaxis):
                mpl_axis.set_major_locator(MaxNLocator(5, integer=True))
        colour_bar: Any = fig.colorbar(colours, ax=all_axes, label=value_label, shrink=0.8)
        colour_bar.solids.set_rasterized(True)  # otherwise the SVG has one shape for each of its colours
        return _render(fig, name, title)


def css_variables() -> dict[str, str]:
    """Return the name and the light value of each CSS variable in the SVGs."""
    return {"ink": INK, "grid": GRID, **{f"series{index}": value for index, value in enumerate(COLOURS)}}


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _new_figure(width: float = 5.4, height: float = 3.3, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Return a figure with its axes: an array (rows, columns) if there are several."""
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns)


def _new_panels(count: int, panel_height: float, margin: float = 0.0) -> tuple[Figure, list[Any]]:
    """Return a figure with the axes of `count` panels, in rows of up to MAX_COLUMNS; `margin` is beside them."""
    rows = math.ceil(count / MAX_COLUMNS)
    columns = math.ceil(count / rows)
    fig, all_axes = _new_figure(max(5.4, 2.9 * columns + margin), 0.3 + panel_height * rows, rows, columns)
    all_axes = np.ravel(all_axes)
    for axes in all_axes[count:]:
        axes.remove()
    return fig, list(all_axes[:count])


class _DecimalLogFormatter(LogFormatter):
    """Labels the ticks that LogFormatter does, by 0.6 in place of 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _format_axes(axes: Any, x: Axis, y: Axis, references: Sequence[Reference] = ()) -> None:
    for mpl_axis, axis, set_scale in ((axes.xaxis, x, axes.set_xscale), (axes.yaxis, y, axes.set_yscale)):
        mpl_axis.set_label_text(axis.label)
        if axis.log:
            set_scale("log")
            mpl_axis.set_major_formatter(_DecimalLogFormatter())
            mpl_axis.set_minor_formatter(_DecimalLogFormatter(minor_thresholds=(1.5, 0.4)))
        if axis.ticks:
            mpl_axis.set_major_locator(FixedLocator(axis.ticks))
            mpl_axis.set_minor_locator(NullLocator())
            mpl_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if axis.integer:
            mpl_axis.set_major_locator(MaxNLocator(8, integer=True))
        if axis.percent:
            mpl_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    if y.percent and y.ticks:
        axes.set_ylim(0, 1)
    if x.percent and x.ticks:
        axes.set_xlim(-0.02, 1.02)
    if x.from_zero:
        axes.set_xlim(left=0)
    if y.from_zero:
        axes.set_ylim(bottom=0)
    for reference in references:
        draw_line, value = (axes.axhline, reference.y) if reference.y is not None else (axes.axvline, reference.x)
        draw_line(value, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label=reference.label, zorder=2)
    axes.tick_params(length=0)


def _add_legend(fig: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = 1 if max(map(len, labels)) > 32 else 2
        added_rows = max(0, math.ceil(len(handles) / columns) - LEGEND_ROWS)
        fig.set_figheight(fig.get_figheight() + added_rows * LEGEND_ROW_HEIGHT)
        fig.legend(
            handles, labels, loc="outside lower left", ncols=columns, handlelength=2.2, columnspacing=1.2
        )  # fmt: skip


def _render(fig: Figure, name: str, title: str) -> Chart:
    fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10.5)
    png, svg = io.BytesIO(), io.StringIO()
    fig.savefig(png, format="png", dpi=DPI, facecolor="white")
    fig.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(name, title, png.getvalue(), _make_embeddable(svg.getvalue()))


def _make_embeddable(svg: str) -> str:
    """Return the SVG without prologue, metadata and fixed size, with CSS variables as colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]+"([^>]*?) width="[^"]+"', r"\1\2", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]+"([^>]*?) height="[^"]+"', r"\1\2", svg, count=1)
    for variable, value in css_variables().items():
        svg = svg.replace(value, f"var(--{variable})")
    return svg
