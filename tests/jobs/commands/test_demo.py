import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.commands.runs import list_runs
from tests.network_namespace import watch_destinations

WHOLE_JOB = """
import json, sys
from pathlib import Path
from aecore.config import load_recipe
from jobs.commands import demo
from jobs.study.job import study
from jobs.train.job import train

faces, tiny = sys.argv[1:]
demo.QUICK = demo.DemoSize(images=120, epochs=1, trials=1, trial_epochs=1)
small = ["model.channels=[8,8,8,8]", "optim.batch=2", "optim.lr=0.01"]  # a net that is alive after one epoch
demo.load_recipe = lambda path, overrides: load_recipe(path, [*overrides, *small])
first = demo.demo(quick=True)
picture = Path(first["picture"]).read_bytes()
demo._query = lambda *args: picture  # the endpoint is stateless: nothing to resume
second = demo.demo(quick=True)
run = train(load_recipe(Path(tiny), [f"data.uri={faces}", "name=x", "optim.epochs=1"]), "x")
print(json.dumps([first, second, study([run["run"]], num_samples=12, limit=64)]))
"""


@pytest.mark.ray
@pytest.mark.usefixtures("tracking")
def test_demo_runs_every_step_resumes_and_sends_nothing_to_other_hosts(many_faces: Path, tiny: str, monkeypatch):
    """Ingest, train, tune, promote, serve and study with a Ray of their own, where each outgoing packet is seen."""
    for name in ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name)  # as in a user's shell
    process, destinations = watch_destinations([sys.executable, "-c", WHOLE_JOB, str(many_faces), tiny], timeout_s=400)
    assert process.returncode == 0, process.stderr
    # torch's TCPStore looks up the name of each peer; ::ffff:127.0.0.1 is not in /etc/hosts, so the resolver is asked.
    assert {name for name in destinations if not name.endswith(" port 53 1.0.0.127.in-addr.arpa")} == set()
    first, second, report = json.loads(process.stdout.splitlines()[-1])
    picture = np.asarray(Image.open(first["picture"]))
    assert picture.shape[2] == 3
    assert picture.std() > 10
    summary = Path(first["summary"]).read_text()
    assert "# Metrics" in summary
    assert first["champion"]["run"] in summary
    assert {run["version"] for run in list_runs()} >= {first["champion"]["version"]}
    assert "zpoint demo 6/6" in process.stderr
    assert second["champion"] == first["champion"]
    assert second["runs"] == first["runs"]
    assert Path(report["report"]).stat().st_size > 10_000
