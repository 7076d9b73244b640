"""`zpoint claims`: each claim is judged by figures that were measured, and its page shows them with pictures."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.claims.catalog import CLAIMS, RUNS, SETS
from jobs.claims.verdicts import Verdict
from jobs.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("tracking")
TINY = ("optim.epochs=1", "model.channels=[4,4,4,4]", "model.norm=group", "scale.workers=0")


def test_claims_are_trained_measured_and_shown_and_another_call_finds_it_all(
    zpoint: Callable, many_faces: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
):
    given = (f"faces={many_faces}", *TINY, "--judged", 12, "--out", "report")
    result = zpoint("claims", *given, "--only", "ae-random", "--only", "vae-radius", "--only", "denoise")
    assert [one["claim"] for one in result["claims"]] == ["denoise", "ae-random", "vae-radius"]
    assert set(result["runs"]) == {"denoise", "near-ae", "vae"}
    page = unescape(Path(result["report"]).read_text())
    for one in result["claims"]:
        assert one["text"] in page
        assert f"--only {one['claim']}" in one["command"]
        assert np.asarray(Image.open(f"report/{one['claim']}.png")).std() > 5
    assert Path("report/vae-radius-radius.png").exists()
    assert json.loads(Path("report/claims.json").read_text())["claims"] == result["claims"]

    monkeypatch.setattr("aecore.analysis.PARTS", {})  # what is not kept cannot be measured
    again = zpoint("claims", *given, "--only", "ae-random")
    assert again["claims"] == result["claims"][1:2]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["celeba=x"], "'celeba=x' is neither a dataset (faces=URI, mnist=URI"),
        (["nonsense"], "'nonsense' is neither a dataset"),
        (["faces=nowhere"], "nowhere"),
        (["--only", "flying"], "--only flying: on these sets there are the claims ae-random,"),
        (["mnist=x", "--only", "denoise"], "--only denoise: on these sets there are the claims z-dim-mnist"),
        (["faces={faces}", "optim.epochs=0"], "optim.epochs"),
        (["faces={faces}", "name=mine"], "'name=mine' is neither"),
        (["faces={faces}", "model.z_dim=100"], "model.z_dim is what the claims vary: leave it out"),
    ],
)
def test_what_cannot_be_put_to_the_test_is_refused_before_anything_is_trained(
    refused: Callable, many_faces: Path, words: list[str], why: str
):
    assert why in refused("claims", *(word.format(faces=many_faces) for word in words))
    assert not list(Path(".zpoint").rglob("run.json"))


def test_every_claim_is_on_a_known_set_and_its_runs_have_recipes():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.on in SETS
        for run in claim.runs:
            assert (RECIPES / f"{RUNS[run][0]}.yaml").is_file()
    assert {run for claim in CLAIMS for run in claim.runs} == set(RUNS)


def a_run(z_dim: int = 4, kl_factor: float = 1.0, kind: str = "denoise", **parts: Any) -> Any:
    """A measured run whose figures are made up; its pictures are gray."""
    recipe = SimpleNamespace(
        model=SimpleNamespace(z_dim=z_dim), loss=SimpleNamespace(kl_factor=kl_factor), task=SimpleNamespace(kind=kind)
    )

    class Pictures(dict):
        def __missing__(self, key: str) -> np.ndarray:
            return np.full((2 if key == "pictures" else 3, 2, 8, 8, 3), 127, np.uint8)  # of two boundaries; of a task

    run = SimpleNamespace(recipe=recipe)
    real = {"faces": 0.96, "hog_frechet": 0.5}
    return SimpleNamespace(
        run=run, options={"judged": 256},
        part=lambda name: SimpleNamespace(figures=real if name == "real" else parts[name], arrays=Pictures()),
    )  # fmt: skip


def scored(rate: float, **more: float) -> dict[str, float]:
    return {"faces": rate, "hog_frechet": 2.0, **more}


def judge(name: str, *runs: Any) -> Verdict:
    claim = next(claim for claim in CLAIMS if claim.name == name)
    return claim.judge(dict(zip(claim.runs, runs, strict=True)))


@pytest.mark.parametrize(("normal", "cube", "holds"), [(0.0, 0.06, True), (0.3, 0.0, False), (0.0, 0.2, False)])
def test_random_points_of_an_ae(normal: float, cube: float, holds: bool):
    cubes = [scored(0.0, boundary=1.0), scored(cube, boundary=20.0)]
    verdict = judge("ae-random", a_run(samplers={"normal": scored(normal)}, cube=cubes))
    assert verdict.holds == holds


@pytest.mark.parametrize(("near", "far", "holds"), [(0.8, 0.1, True), (0.4, 0.1, False), (0.8, 0.9, False)])
def test_points_near_the_origin_of_a_vae(near: float, far: float, holds: bool):
    cubes = [scored(near, boundary=1.0), scored(far, boundary=20.0)]
    verdict = judge("vae-origin", a_run(samplers={"normal": scored(0.5)}, cube=cubes))
    assert verdict.holds == holds
    assert "boundary 1: " in verdict.figures


@pytest.mark.parametrize(("rate", "holds"), [(0.8, True), (0.4, False)])
def test_points_of_a_vae_on_the_sphere_of_radius_sqrt_z_dim(rate: float, holds: bool):
    others = [scored(0.9, radius=1.0), scored(0.9, radius=16.0) | {"hog_frechet": 2.5}]
    verdict = judge("vae-sphere", a_run(samplers={"sphere": scored(rate) | {"hog_frechet": 1.5}}, sphere=others))
    assert verdict.holds == holds
    assert "of the radii tried, 2 comes nearest to real images (1.50)" in verdict.figures


@pytest.mark.parametrize(
    ("before", "after", "rate", "holds"), [(10, 20, 0.9, True), (10, 10.2, 0.9, False), (10, 20, 0.5, False)]
)
def test_a_task(before: float, after: float, rate: float, holds: bool):
    task = {"denoise": {"input_psnr": before, "psnr": after, "input_ssim": 0.1, "ssim": 0.6}}
    run = a_run(tasks=task, samplers={"reconstructions": scored(rate)})
    assert judge("denoise", run).holds == holds


@pytest.mark.parametrize(
    ("gray", "mean", "made", "holds"), [(20, 22, 24, True), (20, 24, 24.2, False), (24, 20, 24.2, False)]
)
def test_colours_must_beat_gray_and_those_of_the_mean_image(gray: float, mean: float, made: float, holds: bool):
    task = {"recolor": {"input_chroma_psnr": gray, "mean_chroma_psnr": mean, "chroma_psnr": made}}
    run = a_run(tasks=task, samplers={"reconstructions": scored(0.9)})
    assert judge("recolor", run).holds == holds


@pytest.mark.parametrize(
    ("psnr", "holds"), [((12, 15, 18, 18.2), True), ((12, 15, 18, 20), False), ((18, 18, 18.2, 18.3), False)]
)
def test_the_z_dim_that_is_enough(psnr: tuple[float, ...], holds: bool):
    runs = [
        a_run(z_dim=z_dim, tasks={"reconstruct": {"psnr": one}},
             samplers=dict.fromkeys(("reconstructions", "normal"), scored(0.9)),
             points={"active_units": 9})
        for z_dim, one in zip((2, 4, 12, 32), psnr, strict=True)
    ]  # fmt: skip
    assert judge("z-dim-mnist", *runs).holds == holds


@pytest.mark.parametrize(
    ("psnr", "rates", "holds"),
    [
        ((24, 23, 22), (0.0, 0.5, 0.9), True),
        ((24, 25, 22), (0.0, 0.5, 0.9), False),
        ((24, 23, 22), (0.5, 0.5, 0.52), False),
    ],
)
def test_the_trade_of_the_kl_factor(psnr: tuple[float, ...], rates: tuple[float, ...], holds: bool):
    runs = [
        a_run(kl_factor=kl, tasks={"reconstruct": {"psnr": p}}, samplers={"normal": scored(rate)})
        for kl, p, rate in zip((1e-6, 1, 6), psnr, rates, strict=True)
    ]
    assert judge("kl-factor", *runs).holds == holds
