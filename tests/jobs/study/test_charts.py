"""Charts: what is drawn is what was given, in a page's own colours."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from jobs.study.charts import COLOURS, INK, Axis, Chart, Mark, Series, dots, histogram, lines, matrices, scatter
from jobs.study.plots import wilson

SHARE = Axis("share", percent=True, ticks=(0, 0.5, 1))
TWO = [Series("first <run>", [1, 2, 4], [0.1, 0.5, 0.9]), Series("second", [1, 2, 4], [1, 1, 1], ([0.9] * 3, [1] * 3))]


def drawn() -> list[Chart]:
    cloud = np.random.default_rng(0).normal(size=(30, 2))
    return [
        lines("l", "Lines", Axis("b", log=True, ticks=(1, 2, 4)), SHARE, TWO, [Mark("real images", y=0.95)]),
        dots("d", "Dots", ["x", "y", "z"], SHARE, [Series("one", [0.1, 0.2, 0.3], [0, 1, 2])], Mark("real", x=0.9)),
        histogram("h", "Radius", Axis("radius", log=True, ticks=(1, 2, 4)), TWO),
        scatter("s", "Clouds", [("one", cloud), ("two", cloud)], Axis("mean"), Axis("sd"), Mark("N(0, 1)", x=0, y=1)),
    ]


@pytest.fixture(scope="module")
def charts() -> list[Chart]:
    return drawn()


def test_a_chart_is_a_png_and_an_svg_that_fits_a_page(charts: list[Chart]):
    for chart in charts:
        assert Image.open(io.BytesIO(chart.png)).format == "PNG"
        root = ET.fromstring(chart.svg)
        assert root.tag.endswith("svg")
        assert "viewBox" in root.attrib
        assert not {"width", "height"} & set(root.attrib)
        assert chart.title in chart.svg


def test_colours_are_the_pages(charts: list[Chart]):
    for chart in charts:
        assert not any(value in chart.svg for value in (*COLOURS, INK))
        assert "var(--ink)" in chart.svg
        assert "var(--series0)" in chart.svg
        assert not re.search(r"#[0-9a-f]{6}(?!\w)", re.sub(r'(href|id)="[^"]*"|url\([^)]*\)', "", chart.svg))


def test_a_matrix_is_blue_below_zero_and_red_above_and_blank_on_its_diagonal():
    values = np.array([[1, 0.5], [-0.5, 1]])
    chart = matrices("m", "Matrices", [("one", values), ("two", values / 2)], Axis("component"), "correlation")
    assert not re.search(r"#[0-9a-f]{6}(?!\w)", re.sub(r'(href|id)="[^"]*"|url\([^)]*\)', "", chart.svg))
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,\s*([^\"]+)", chart.svg)]
    one, two = (np.array(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)[::-1] for png in pictures[:2])
    side = len(one)
    (above, below), (fainter, _) = (
        (picture[side // 4, 3 * side // 4], picture[3 * side // 4, side // 4]) for picture in (one, two)
    )
    assert above[0] > above[2] + 50
    assert below[2] > below[0] + 50
    assert above[1] < fainter[1] < 255
    assert one[side // 4, side // 4, 3] == one[3 * side // 4, 3 * side // 4, 3] == 0
    text = "".join(ET.fromstring(chart.svg).itertext())
    for label in ("one", "two", "component", "correlation", "0.4", "-0.4"):
        assert label in text.replace("\N{MINUS SIGN}", "-"), text


def test_labels_are_text_and_escaped(charts: list[Chart]):
    text = "".join(ET.fromstring(charts[0].svg).itertext())
    for label in ("first <run>", "second", "real images", "share", "50%"):
        assert label in text


def test_the_same_numbers_give_the_same_chart(charts: list[Chart]):
    assert [chart.svg for chart in drawn()] == [chart.svg for chart in charts]


def test_the_interval_of_a_rate():
    """Wilson's interval of 0 of 10 ends at 0.278, of 5 of 10 it is 0.237 to 0.763."""
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert wilson(0.5, 10) == pytest.approx((0.237, 0.763), abs=1e-3)
    assert wilson(1.0, 10) == pytest.approx((0.722, 1.0), abs=1e-3)
