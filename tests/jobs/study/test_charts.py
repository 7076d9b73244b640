"""Charts: they show the values, take the page's colours, and are reproducible."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize(("rate", "interval"), [(0.0, (0.0, 0.278)), (0.5, (0.237, 0.763)), (1.0, (0.722, 1.0))])
def test_confidence_interval_of_a_rate_is_wilsons(rate: float, interval: tuple[float, float]):
    assert confidence_interval(rate, 10) == pytest.approx(interval, abs=1e-3)
