"""The PNGs of a study's report."""

import numpy as np
import pytest

from jobs.study import report
from jobs.study.report import image_rows_png
from jobs.study.sections import ImageRow


def test_png_of_images_names_its_table_and_the_metric_of_each_cell(monkeypatch: pytest.MonkeyPatch):
    sheets = []
    monkeypatch.setattr(report, "titled_sheet", lambda sections, heading: sheets.append((heading, sections)))
    monkeypatch.setattr(report, "to_png", lambda _: b"")
    images = np.zeros((2, 4, 4, 3), np.uint8)
    image_rows_png(
        "a run", ["faces", "HOG-Frechet"], [ImageRow("gmm", images, ["75 %", "2.00"]), ImageRow("x", images)]
    )
    [(heading, sections)] = sheets
    assert heading == "a run"
    assert [title for title, _ in sections] == ["gmm, faces 75 %, HOG-Frechet 2.00", "x"]
