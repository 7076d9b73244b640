from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.commands import demo as demo_module
from jobs.commands.runs import list_runs


@pytest.mark.usefixtures("tracking")
def test_the_whole_way_once(ray_cluster, capsys, monkeypatch):
    """A tiny demo through every station; the second call goes on from what is finished."""
    monkeypatch.setitem(demo_module.SIZES, True, (120, 1, 1, 1))
    result = demo_module.demo(quick=True)
    picture = np.asarray(Image.open(result["picture"]))
    assert picture.shape[2] == 3
    assert picture.std() > 10
    text = Path(result["summary"]).read_text()
    assert "What was measured" in text
    assert result["champion"]["run"] in text
    assert {run["version"] for run in list_runs()} >= {result["champion"]["version"]}
    assert "zpoint demo 6/6" in capsys.readouterr().err

    monkeypatch.setattr(demo_module, "_query", lambda *served: b"")  # to serve it once more would show nothing new
    again = demo_module.demo(quick=True)
    assert again["champion"] == result["champion"]
    assert again["runs"] == result["runs"]
