"""Charts: they show the values, take the page's colours, and are reproducible."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jobs.study import charts as charts_module
from jobs.study.charts import (
    COLOURS,
    INK,
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
from jobs.study.metrics import confidence_interval
from jobs.study.study_charts import variance_chart

RATE_AXIS = Axis("rate", percent=True, ticks=(0, 0.5, 1))
SERIES = [
    Series("first <run>", [1, 2, 4], [0.1, 0.5, 0.9]),
    Series("second", [1, 2, 4], [1, 1, 1], ([0.9] * 3, [1] * 3)),
]
HEX_COLOUR = r"#[0-9a-f]{6}(?!\w)"


def draw_charts() -> list[Chart]:
    log_axis = Axis("radius", log=True, ticks=(1, 2, 4))
    points = np.random.default_rng(0).normal(size=(30, 2))
    dots = [Series("one", [0.1, 0.2, 0.3], [0, 1, 2])]
    panels = [("one", points), ("two", points)]
    return [
        line_chart("l", "Lines", log_axis, RATE_AXIS, SERIES, [Reference("real images", y=0.95)]),
        dot_chart("d", "Dots", ["x", "y", "z"], RATE_AXIS, dots, Reference("real", x=0.9)),
        histogram_chart("h", "Radius", log_axis, Axis("share", percent=True), SERIES),
        scatter_chart("s", "Points", panels, Axis("mean"), Axis("sd"), Reference("N(0, 1)", x=0, y=1)),
    ]


@pytest.fixture(scope="module")
def charts() -> list[Chart]:
    return draw_charts()


def without_ids_and_urls(svg: str) -> str:
    return re.sub(r'(href|id)="[^"]*"|url\([^)]*\)', "", svg)


def test_long_panel_titles_stay_inside_the_chart():
    """The background of the right margin is not drawn on."""
    panels = [("faces-near-ae-bf4f14e0 (kl_factor 1e-06)", np.zeros((1, 2)))] * 2
    chart = scatter_chart("s", "Points", panels, Axis("mean"), Axis("sd"))
    pixels = np.asarray(Image.open(io.BytesIO(chart.png)).convert("L"))
    assert pixels.min() < 100
    assert (pixels[:, -6:] == 255).all()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return the list of the figures that the test draws."""
    drawn, new_figure = [], charts_module._new_figure

    def record_figure(*args: Any, **kwargs: Any) -> tuple[Figure, Any]:
        fig, axes = new_figure(*args, **kwargs)
        drawn.append(fig)
        return fig, axes

    monkeypatch.setattr(charts_module, "_new_figure", record_figure)
    return drawn


@pytest.mark.parametrize(
    ("values", "labels"),
    [([0.5, 8], ["0.6", "1", "2", "3", "4", "6"]), ([0.01, 10], ["0.01", "0.1", "1", "10"]),
     ([16, 64], ["20", "30", "40", "60"])],
)  # fmt: skip
def test_labels_of_a_logarithmic_axis_are_decimals_and_apart(
    figures: list[Figure], values: list[float], labels: list[str]
):
    line_chart("l", "Lines", Axis("kl_factor", log=True), RATE_AXIS, [Series("run", values, [0.1, 0.9])])
    [axes] = figures[0].axes
    shown = [t for t in axes.get_xticklabels(which="both") if t.get_text() and 0 <= axes.transAxes.inverted().transform(
        axes.transData.transform((t.get_position()[0], 0)))[0] <= 1]  # fmt: skip
    assert sorted((t.get_text() for t in shown), key=float) == labels
    extents = sorted((t.get_window_extent() for t in shown), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))


def test_a_single_point_of_a_muted_series_is_drawn(figures: list[Figure]):
    line_chart("l", "Lines", Axis("epoch"), RATE_AXIS, [Series("run", [1], [0.5], muted=True), SERIES[0]])
    assert [line.get_marker() for line in figures[0].axes[0].lines[:2]] == [".", "o"]


@pytest.mark.parametrize("num_runs", [1, 5, 6, 12])
def test_dots_of_each_row_lie_in_it_and_apart(figures: list[Figure], num_runs: int):
    dots = [Series(f"run {run}", [0.5, 0.5], [0, 1]) for run in range(num_runs)]
    dot_chart("d", "Dots", ["x", "y"], RATE_AXIS, dots, Reference("real", x=0.9))
    [axes] = figures[0].axes
    heights = np.array([line.get_ydata() for line in axes.lines[:num_runs]], float)  # (run, row)
    assert np.abs(heights - [0, 1]).max() <= 0.4
    row_height = axes.get_position().height * figures[0].get_figheight() / 2
    assert (np.diff(heights, axis=0) * row_height > 0.04).all()  # inches


def test_legend_of_many_runs_leaves_the_lines_their_height(figures: list[Figure]):
    for num_runs in (2, 8):
        lines = [Series(f"celeba-vae-{run:08x} (kl_factor 0.25)", [1, 2], [0.1, 0.9]) for run in range(num_runs)]
        line_chart("l", "Lines", Axis("radius"), RATE_AXIS, lines, [Reference("real images", y=0.95)])
    few, many = (fig.axes[0].get_position().height * fig.get_figheight() for fig in figures)
    assert many > 0.9 * few


@pytest.mark.parametrize("num_runs", [1, 2, 3, 8])
def test_labels_and_titles_of_matrices_are_whole_and_apart(num_runs: int):
    """Nothing is drawn at the lower edge, nor just below the chart's title."""
    panels = [("faces-near-ae-bf4f14e0 (kl_factor 1e-06)", np.eye(64))] * num_runs
    chart = matrix_chart("m", "Matrices", panels, Axis("latent dimension"), "correlation")
    rows_with_ink = np.any(np.asarray(Image.open(io.BytesIO(chart.png)).convert("L")) < 200, axis=1)
    assert not rows_with_ink[-6:].any()
    title_end = rows_with_ink.argmax() + 22  # pixels: the height of the title's letters
    assert rows_with_ink[title_end - 10]
    assert not rows_with_ink[title_end : title_end + 10].any()


def test_panels_of_many_runs_are_wrapped(figures: list[Figure]):
    for num_runs in (3, 4, 8):
        scatter_chart("s", "Points", [("run", np.zeros((9, 2)))] * num_runs, Axis("mean"), Axis("sd"))
    assert [len(fig.axes) for fig in figures] == [3, 4, 8]
    columns = [len({round(axes.get_position().x0, 2) for axes in fig.axes}) for fig in figures]
    assert columns == [3, 2, 3]
    y_labels = [axes.get_ylabel() for axes in figures[2].axes]
    assert y_labels == ["sd", "", ""] * 2 + ["sd", ""]


def test_chart_is_a_png_and_an_svg_without_fixed_size(charts: list[Chart]):
    for chart in charts:
        assert Image.open(io.BytesIO(chart.png)).format == "PNG"
        root = ET.fromstring(chart.svg)
        assert root.tag.endswith("svg")
        assert "viewBox" in root.attrib
        assert not {"width", "height"} & set(root.attrib)
        assert chart.title in chart.svg


def test_svg_has_css_variables_in_place_of_colours(charts: list[Chart]):
    for chart in charts:
        assert not any(value in chart.svg for value in (*COLOURS, INK))
        assert "var(--ink)" in chart.svg
        assert "var(--series0)" in chart.svg
        assert not re.search(HEX_COLOUR, without_ids_and_urls(chart.svg))


def test_matrix_is_blue_below_zero_red_above_and_blank_on_the_diagonal():
    matrix = np.array([[1, 0.5], [-0.5, 1]])
    panels = [("one", matrix), ("two", matrix / 2)]
    chart = matrix_chart("m", "Matrices", panels, Axis("dimension"), "correlation")
    assert not re.search(HEX_COLOUR, without_ids_and_urls(chart.svg))
    pngs = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,\s*([^\"]+)", chart.svg)]
    strong, weak = (np.array(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)[::-1] for png in pngs[:2])
    near, far = len(strong) // 4, 3 * len(strong) // 4
    positive, negative, weak_positive = strong[near, far], strong[far, near], weak[near, far]
    assert positive[0] > positive[2] + 50
    assert negative[2] > negative[0] + 50
    assert positive[1] < weak_positive[1] < 255
    assert strong[near, near, 3] == strong[far, far, 3] == 0
    text = "".join(ET.fromstring(chart.svg).itertext())
    for label in ("one", "two", "dimension", "correlation", "0.4", "-0.4"):
        assert label in text.replace("\N{MINUS SIGN}", "-"), text


def test_labels_are_escaped_text(charts: list[Chart]):
    text = "".join(ET.fromstring(charts[0].svg).itertext())
    for label in ("first <run>", "second", "real images", "rate", "50%"):
        assert label in text


def test_same_values_give_the_same_svg(charts: list[Chart]):
    assert [chart.svg for chart in draw_charts()] == [chart.svg for chart in charts]


def test_equal_z_points_explain_no_variance(figures: list[Figure]):
    variance_chart([{"run": "a", "kl_factor": 0.0, "points": {"variances": [0.0, 0.0]}}])
    [axes] = figures[0].axes
    assert [list(map(float, line.get_ydata())) for line in axes.lines] == [[0, 0, 0], [0.9, 0.9]]


@pytest.mark.parametrize(("rate", "interval"), [(0.0, (0.0, 0.278)), (0.5, (0.237, 0.763)), (1.0, (0.722, 1.0))])
def test_confidence_interval_of_a_rate_is_wilsons(rate: float, interval: tuple[float, float]):
    assert confidence_interval(rate, 10) == pytest.approx(interval, abs=1e-3)
