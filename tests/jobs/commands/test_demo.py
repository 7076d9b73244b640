from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecore.config import load_recipe
from jobs.commands import demo as demo_module
from jobs.commands.runs import list_runs


@pytest.mark.usefixtures("tracking")
def test_demo_runs_every_step_and_a_second_call_resumes(ray_cluster, capsys, monkeypatch):
    monkeypatch.setattr(demo_module, "QUICK", demo_module.DemoSize(images=120, epochs=1, trials=1, trial_epochs=1))
    small = ["model.channels=[8,8,8,8]", "optim.batch=2", "optim.lr=0.01"]  # a net that is alive after one epoch
    monkeypatch.setattr(demo_module, "load_recipe", lambda path, overrides: load_recipe(path, [*overrides, *small]))
    result = demo_module.demo(quick=True)
    picture = np.asarray(Image.open(result["picture"]))
    assert picture.shape[2] == 3
    assert picture.std() > 10
    summary = Path(result["summary"]).read_text()
    assert "# Metrics" in summary
    assert result["champion"]["run"] in summary
    assert {run["version"] for run in list_runs()} >= {result["champion"]["version"]}
    assert "zpoint demo 6/6" in capsys.readouterr().err

    monkeypatch.setattr(demo_module, "_query", lambda *args: b"")  # the endpoint is stateless: nothing to resume
    resumed = demo_module.demo(quick=True)
    assert resumed["champion"] == result["champion"]
    assert resumed["runs"] == result["runs"]
