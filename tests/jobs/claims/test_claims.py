"""`zpoint claims`: each claim is checked on measured runs, and the page shows the evidence and images."""

import json
import os
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecore.data.io import read_bytes
from cluster.lock import hold_lock
from cluster.storage import open_uri
from jobs.claims.catalog import CLAIMS, DATASETS, RUNS
from jobs.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("tracking")
TINY = ("optim.epochs=1", "model.channels=[4,4,4,4]", "model.norm=group", "scale.workers=0")


def test_claims_are_checked_and_reported_and_a_second_call_reuses_the_measurements(
    zpoint: Callable, many_faces: Path, tiny: str, s3: str, monkeypatch: pytest.MonkeyPatch
):
    arguments = (f"faces={many_faces}", *TINY, "--num-samples", 12, "--out", "report")
    result = zpoint("claims", *arguments, "--only", "ae-random", "--only", "vae-radius", "--only", "denoise")
    assert [claim["claim"] for claim in result["claims"]] == ["denoise", "ae-random", "vae-radius"]
    assert set(result["runs"]) == {"denoise", "near-ae", "vae"}
    page = unescape(Path(result["report"]).read_text())
    for claim in result["claims"]:
        assert claim["text"] in page
        assert f"--only {claim['claim']}" in claim["command"]
        assert np.asarray(Image.open(f"report/{claim['claim']}.png")).std() > 5
    assert Path("report/vae-radius-radius.png").exists()
    assert json.loads(Path("report/claims.json").read_text())["claims"] == result["claims"]

    monkeypatch.setattr("aecore.analysis.MEASUREMENTS", {})  # nothing can be measured any more
    second = zpoint("claims", *arguments, "--only", "ae-random", "--out", f"{s3}/report")
    assert second["claims"] == result["claims"][1:2]
    assert second["report"] == f"{s3}/report/claims.html"
    fs, path = open_uri(second["report"])
    assert result["claims"][1]["text"] in unescape(read_bytes(fs, path).decode())


def test_report_that_another_command_writes_is_refused(refused: Callable, many_faces: Path):
    with hold_lock("report/.lock", "", ""):
        error = refused("claims", f"faces={many_faces}", "--out", "report")
    assert f"report are being checked by pid {os.getpid()} on host" in error
    assert error.endswith("or choose another --out")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["celeba=x"], "'celeba=x' is neither a dataset (faces=URI, mnist=URI"),
        (["nonsense"], "'nonsense' is neither a dataset"),
        (["faces=nowhere"], "nowhere"),
        (["faces={few}", "--only", "reconstruct", *TINY], "a study needs at least 64 images in each split, found 48"),
        (["mnist={faces}"], "these images are of generated; did you mean faces="),
        (["--only", "flying"], "--only flying: no such claim on these datasets; they have ae-random,"),
        (["mnist=x", "--only", "denoise"], "--only denoise: no such claim on these datasets; they have z-dim-mnist"),
        (["faces={faces}", "optim.epochs=0"], "optim.epochs"),
        (["faces={faces}", "name=mine"], "'name=mine' is neither"),
        *(
            (["faces={faces}", f"{key}=1"], f"{key} is set by the claims themselves: leave it out")
            for key in ("model.z_dim", "loss.kl_factor", "task.kind", "task.sigma", "task.keep", "data.uri")
        ),
    ],
)
def test_invalid_arguments_are_refused_before_any_training(
    refused: Callable, many_faces: Path, written_faces: Path, arguments: list[str], error: str
):
    paths = {"faces": many_faces, "few": written_faces}
    assert error in refused("claims", *(argument.format(**paths) for argument in arguments))
    assert not list(Path(".zpoint").rglob("run.json"))


def test_every_claim_has_a_dataset_and_its_runs_have_recipes():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.dataset in DATASETS
        for name in claim.run_names:
            assert (RECIPES / f"{RUNS[name][0]}.yaml").is_file()
    assert {name for claim in CLAIMS for name in claim.run_names} == set(RUNS)
