"""`zpoint claims`: each claim is checked on measured runs, and the page shows the evidence and images."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.claims.catalog import CLAIMS, DATASETS, RUNS
from jobs.claims.verdicts import Verdict
from jobs.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("tracking")
TINY = ("optim.epochs=1", "model.channels=[4,4,4,4]", "model.norm=group", "scale.workers=0")


def test_claims_are_checked_and_reported_and_a_second_call_reuses_the_measurements(
    zpoint: Callable, many_faces: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
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
    second = zpoint("claims", *arguments, "--only", "ae-random")
    assert second["claims"] == result["claims"][1:2]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["celeba=x"], "'celeba=x' is neither a dataset (faces=URI, mnist=URI"),
        (["nonsense"], "'nonsense' is neither a dataset"),
        (["faces=nowhere"], "nowhere"),
        (["--only", "flying"], "--only flying: no such claim on these datasets; they have ae-random,"),
        (["mnist=x", "--only", "denoise"], "--only denoise: no such claim on these datasets; they have z-dim-mnist"),
        (["faces={faces}", "optim.epochs=0"], "optim.epochs"),
        (["faces={faces}", "name=mine"], "'name=mine' is neither"),
        (["faces={faces}", "model.z_dim=100"], "model.z_dim is set by the claims themselves: leave it out"),
    ],
)
def test_invalid_arguments_are_refused_before_any_training(
    refused: Callable, many_faces: Path, arguments: list[str], error: str
):
    assert error in refused("claims", *(argument.format(faces=many_faces) for argument in arguments))
    assert not list(Path(".zpoint").rglob("run.json"))


def test_every_claim_has_a_dataset_and_its_runs_have_recipes():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.dataset in DATASETS
        for name in claim.run_names:
            assert (RECIPES / f"{RUNS[name][0]}.yaml").is_file()
    assert {name for claim in CLAIMS for name in claim.run_names} == set(RUNS)


def make_measured_run(z_dim: int = 4, kl_factor: float = 1.0, kind: str = "denoise", **metrics: Any) -> Any:
    """Return a fake of MeasuredRun with the given metrics by measurement, and gray images."""
    recipe = SimpleNamespace(
        model=SimpleNamespace(z_dim=z_dim), loss=SimpleNamespace(kl_factor=kl_factor), task=SimpleNamespace(kind=kind)
    )
    summary = {"run": "fake", "kl_factor": kl_factor}
    metrics["real"] = {"faces": 0.96, "hog_frechet": 0.5}

    class GrayImages(dict):
        def __missing__(self, name: str) -> np.ndarray:
            rows = 2 if name == "pictures" else 3  # two sweep values; input, clean image and output of a task
            return np.full((rows, 2, 8, 8, 3), 127, np.uint8)

    z_point_arrays = {"plane": np.zeros((9, 2)), "tsne": np.zeros((9, 2)), "correlation": np.eye(z_dim)}
    return SimpleNamespace(
        run=SimpleNamespace(recipe=recipe, summary=summary), options={"judged": 256},
        measure=lambda name: SimpleNamespace(
            metrics=metrics[name], arrays=z_point_arrays if name == "points" else GrayImages()
        ),
    )  # fmt: skip


def scores(rate: float, **parameters: float) -> dict[str, float]:
    return {"faces": rate, "hog_frechet": 2.0, **parameters}


def check(name: str, *runs: Any) -> Verdict:
    [claim] = [claim for claim in CLAIMS if claim.name == name]
    return claim.check(dict(zip(claim.run_names, runs, strict=True)))


@pytest.mark.parametrize(("normal", "cube", "holds"), [(0.0, 0.06, True), (0.3, 0.0, False), (0.0, 0.2, False)])
def test_ae_random_holds_if_neither_n01_nor_any_cube_shows_faces(normal: float, cube: float, holds: bool):
    cubes = [scores(0.0, boundary=1.0), scores(cube, boundary=20.0)]
    verdict = check("ae-random", make_measured_run(samplers={"normal": scores(normal)}, cube=cubes))
    assert verdict.holds == holds


@pytest.mark.parametrize(("near", "far", "holds"), [(0.8, 0.1, True), (0.4, 0.1, False), (0.8, 0.9, False)])
def test_vae_origin_holds_if_faces_are_near_the_origin_and_fewer_far_from_it(near: float, far: float, holds: bool):
    cubes = [scores(near, boundary=1.0), scores(far, boundary=20.0)]
    verdict = check("vae-origin", make_measured_run(samplers={"normal": scores(0.5)}, cube=cubes))
    assert verdict.holds == holds
    assert "boundary 1: " in verdict.evidence


@pytest.mark.parametrize(("rate", "holds"), [(0.8, True), (0.4, False)])
def test_vae_sphere_holds_if_the_sphere_of_radius_sqrt_z_dim_shows_faces(rate: float, holds: bool):
    sweep = [scores(0.9, radius=1.0), scores(0.9, radius=16.0) | {"hog_frechet": 2.5}]
    samplers = {"sphere": scores(rate) | {"hog_frechet": 1.5}}
    verdict = check("vae-sphere", make_measured_run(samplers=samplers, sphere=sweep))
    assert verdict.holds == holds
    assert "of all measured radii, 2 is nearest to real images (1.50)" in verdict.evidence


@pytest.mark.parametrize(
    ("correlation", "coherent", "holds"), [(0.3, True, True), (0.01, True, False), (0.3, False, False)]
)
def test_one_region_holds_if_z_points_are_coherent_and_correlated(correlation: float, coherent: bool, holds: bool):
    points = {
        "encoded": 6_000, "coherent": coherent, "centre_radius": 5.0, "mean_radius": 10.0,
        "mean_abs_correlation": correlation, "core_distance": 0.01, "largest_fragment": 1.0, "silhouette": 0.1,
        "gaussian_silhouette": 0.1,
    }  # fmt: skip
    verdict = check("one-region", make_measured_run(points=points))
    assert verdict.holds == holds
    assert [chart.name for chart in verdict.charts] == ["plane", "tsne", "correlations"]


@pytest.mark.parametrize(
    ("input_psnr", "psnr", "rate", "holds"), [(10, 20, 0.9, True), (10, 10.2, 0.9, False), (10, 20, 0.5, False)]
)
def test_task_claim_holds_if_the_psnr_rises_and_outputs_show_faces(
    input_psnr: float, psnr: float, rate: float, holds: bool
):
    task = {"denoise": {"input_psnr": input_psnr, "psnr": psnr, "input_ssim": 0.1, "ssim": 0.6}}
    run = make_measured_run(tasks=task, samplers={"reconstructions": scores(rate)})
    assert check("denoise", run).holds == holds


@pytest.mark.parametrize(
    ("gray", "mean", "output", "holds"), [(20, 22, 24, True), (20, 24, 24.2, False), (24, 20, 24.2, False)]
)
def test_recolor_holds_if_colours_beat_gray_and_the_mean_image(gray: float, mean: float, output: float, holds: bool):
    task = {"recolor": {"input_chroma_psnr": gray, "mean_chroma_psnr": mean, "chroma_psnr": output}}
    run = make_measured_run(kind="recolor", tasks=task, samplers={"reconstructions": scores(0.9)})
    assert check("recolor", run).holds == holds


@pytest.mark.parametrize(
    ("psnr", "holds"), [((12, 15, 18, 18.2), True), ((12, 15, 18, 20), False), ((18, 18, 18.2, 18.3), False)]
)
def test_z_dim_claim_holds_if_the_psnr_rises_up_to_it_and_not_beyond(psnr: tuple[float, ...], holds: bool):
    runs = [
        make_measured_run(
            z_dim=z_dim, tasks={"reconstruct": {"psnr": run_psnr}}, points={"active_units": 9},
            samplers=dict.fromkeys(("reconstructions", "normal"), scores(0.9)),
        )
        for z_dim, run_psnr in zip((2, 4, 12, 32), psnr, strict=True)
    ]  # fmt: skip
    assert check("z-dim-mnist", *runs).holds == holds


@pytest.mark.parametrize(
    ("psnr", "rates", "holds"),
    [
        ((24, 23, 22), (0.0, 0.5, 0.9), True),
        ((24, 25, 22), (0.0, 0.5, 0.9), False),
        ((24, 23, 22), (0.5, 0.5, 0.52), False),
    ],
)
def test_kl_factor_claim_holds_if_the_psnr_falls_and_the_rate_rises(
    psnr: tuple[float, ...], rates: tuple[float, ...], holds: bool
):
    runs = [
        make_measured_run(
            kl_factor=kl_factor, tasks={"reconstruct": {"psnr": run_psnr}}, samplers={"normal": scores(rate)}
        )
        for kl_factor, run_psnr, rate in zip((1e-6, 1, 6), psnr, rates, strict=True)
    ]
    assert check("kl-factor", *runs).holds == holds
