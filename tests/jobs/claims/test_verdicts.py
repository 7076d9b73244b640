"""The rule of each claim, on made-up metrics at both sides of each of its thresholds."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aecore.config import load_recipe
from jobs.claims import verdicts
from jobs.claims.catalog import CLAIMS, RUNS, Claim
from jobs.claims.verdicts import Verdict
from jobs.recipes import RECIPES

SAMPLERS = ("reconstructions", "normal", "sphere", "diagonal", "gaussian", "gmm")
BOUNDARIES, RADII = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0), (1.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CLAIMS_BY_NAME = {claim.name: claim for claim in CLAIMS}


def make_metrics(key: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's metrics by measurement. Real images have a rate of 0.8, all others 0.75.

    `key` names the rates. `changes` maps paths such as `tasks.denoise.psnr` to values; `RATE` in a path is `key`.
    """

    def scores(rate: float, **parameters: float) -> dict[str, float]:
        return {key: rate, "hog_frechet": 2.0, **parameters}

    task = {"input_psnr": 10.0, "mean_psnr": 11.0, "psnr": 20.0, "input_ssim": 0.1, "ssim": 0.6}
    metrics = {
        "real": scores(0.8),
        "samplers": {name: scores(0.75) for name in SAMPLERS},
        "cube": [scores(0.75, boundary=boundary) for boundary in BOUNDARIES],
        "sphere": [scores(0.75, radius=radius) for radius in RADII],
        "tasks": {
            "reconstruct": {"mean_psnr": 11.0, "psnr": 20.0, "ssim": 0.7}, "denoise": task, "drop": {**task},
            "recolor": {"input_chroma_psnr": 20.0, "mean_chroma_psnr": 18.0, "chroma_psnr": 24.0},
        },
        "points": {
            "encoded": 6_000, "coherent": True, "centre_radius": 5.0, "mean_radius": 10.0, "sqrt_z_dim": 10.0,
            "mean_abs_correlation": 0.3, "core_distance": 0.01, "largest_fragment": 1.0, "silhouette": 0.1,
            "gaussian_silhouette": 0.2, "active_units": 9, "radius_bins": [0.5, 1, 2], "radius_shares": [0.4, 0.6],
        },
    }  # fmt: skip
    for path, value in changes.items():
        *parents, name = [int(part) if part.isdigit() else part.replace("RATE", key) for part in path.split(".")]
        node: Any = metrics
        for parent in parents:
            node = node[parent]
        assert name in node
        node[name] = value
    return metrics


def make_run(claim: Claim, name: str, changes: Mapping[str, Any]) -> Any:
    """Return a fake of MeasuredRun with the recipe of the run `name`, made-up metrics and gray images."""
    stem, overrides = RUNS[name]
    recipe = load_recipe(RECIPES / f"{stem}.yaml", ["data.uri=x", *overrides])
    metrics = make_metrics("faces" if claim.dataset == "faces" else "recognised", changes)

    class GrayImages(dict):
        def __missing__(self, name: str) -> np.ndarray:
            rows = 3 if name in metrics["tasks"] else 6  # input, clean image and output of a task; values of a sweep
            return np.full((rows, 2, 8, 8, 3), 127, np.uint8)

    arrays = {"plane": np.zeros((9, 2)), "tsne": np.zeros((9, 2)), "correlation": np.eye(4)}
    return SimpleNamespace(
        run=SimpleNamespace(recipe=recipe, summary={"run": name, "kl_factor": recipe.loss.kl_factor}),
        options={"judged": 256},
        measure=lambda measurement: SimpleNamespace(
            metrics=metrics[measurement], arrays=arrays if measurement == "points" else GrayImages()
        ),
    )


def check(name: str, *changes: Mapping[str, Any]) -> Verdict:
    """Check a claim on runs whose metrics differ from `make_metrics` by `changes`, one mapping for each run."""
    claim = CLAIMS_BY_NAME[name]
    names = claim.run_names
    return claim.check({name: make_run(claim, name, change) for name, change in zip(names, changes, strict=True)})


NO_FACES = {"samplers.normal.RATE": 0.05, **{f"cube.{index}.RATE": 0.05 for index in range(6)}}
PSNR = "tasks.reconstruct.psnr"
# claim: the changes of each run's metrics with which it holds
HOLDING: dict[str, list[dict[str, Any]]] = {
    "reconstruct": [{}],
    "denoise": [{}],
    "drop": [{}],
    "recolor": [{}],
    "recolor-cifar10": [{}],
    "ae-random": [NO_FACES],
    "vae-origin": [{"cube.5.RATE": 0.1}],
    "vae-sphere": [{}],
    "vae-radius": [{}, {"points.mean_radius": 99.0}],
    "one-region": [{}],
    "fitted": [{}],
    "kl-factor": [
        {PSNR: 24.0, "samplers.normal.RATE": 0.05}, {PSNR: 23.0}, {PSNR: 22.0, "samplers.normal.RATE": 0.9}
    ],
    "z-dim-faces": [{PSNR: 20.0}, {PSNR: 21.0}, {PSNR: 30.0}],
    "z-dim-mnist": [{PSNR: 12.0}, {PSNR: 15.0}, {PSNR: 18.0}, {PSNR: 18.2}],
    "z-dim-fashion": [{PSNR: 12.0}, {PSNR: 18.0}, {PSNR: 18.2}],
}  # fmt: skip
# claims that real images without faces or classes cannot support
NEEDING_REAL = ("reconstruct", "denoise", "drop", "recolor", "recolor-cifar10", "ae-random", "fitted")
NEAR_REAL = (0.721, 0.719)  # 0.9 times the rate of real images is 0.72
# claim, index of the run, metric, a value just inside the rule, one just outside
THRESHOLDS: list[tuple[str, int, str, float, float]] = [
    *((name, 0, "real.RATE", 0.5, 0.499) for name in NEEDING_REAL),
    *((name, 0, "samplers.reconstructions.RATE", *NEAR_REAL)
      for name in ("reconstruct", "denoise", "drop", "recolor", "recolor-cifar10")),
    *((name, 0, f"tasks.{name}.psnr", 11.5, 11.49) for name in ("reconstruct", "denoise", "drop")),
    *((name, 0, f"tasks.{name}.mean_psnr", 19.5, 19.51) for name in ("reconstruct", "denoise", "drop")),
    *((name, 0, f"tasks.{name}.input_psnr", 19.5, 19.51) for name in ("denoise", "drop")),
    *((name, 0, f"tasks.recolor.{metric}", inside, outside)
      for name in ("recolor", "recolor-cifar10")
      for metric, inside, outside in (
          ("chroma_psnr", 20.5, 20.49), ("input_chroma_psnr", 23.5, 23.51), ("mean_chroma_psnr", 23.5, 23.51))),
    ("ae-random", 0, "samplers.normal.RATE", 0.1, 0.101),
    *(("ae-random", 0, f"cube.{index}.RATE", 0.1, 0.101) for index in range(6)),
    ("vae-origin", 0, "cube.1.RATE", 0.501, 0.5),
    ("vae-origin", 0, "cube.5.RATE", 0.66, 0.68),  # of 256 images: a significant difference from 0.75, and none
    ("vae-sphere", 0, "samplers.sphere.RATE", 0.501, 0.5),
    ("vae-radius", 0, "points.mean_radius", 10.99, 11.01),
    ("vae-radius", 0, "points.mean_radius", 9.01, 8.99),
    ("one-region", 0, "points.coherent", True, False),
    ("one-region", 0, "points.centre_radius", 1.01, 1.0),
    ("one-region", 0, "points.mean_abs_correlation", 0.0501, 0.0499),
    ("one-region", 0, "points.encoded", 29, 28),  # of 28 z-points in independent dimensions it is 0.1508
    ("one-region", 0, "points.core_distance", 0.0299, 0.03),
    ("fitted", 0, "samplers.gaussian.RATE", *NEAR_REAL),
    ("vae-origin", 0, "cube.5.RATE", 0.1, 0.99),  # more faces at boundary 20
    ("kl-factor", 0, PSNR, 23.11, 23.09),
    ("kl-factor", 1, PSNR, 22.11, 22.09),
    ("kl-factor", 2, PSNR, 22.89, 22.91),
    ("kl-factor", 2, "samplers.normal.RATE", 0.1, 0.09),  # of 256 images: a significant difference from 0.05, and none
    ("kl-factor", 0, "samplers.normal.RATE", 0.5, 0.99),  # more faces with the smallest factor
    ("z-dim-faces", 0, PSNR, 20.5, 20.51),
    ("z-dim-faces", 1, PSNR, 20.5, 20.49),
    ("z-dim-mnist", 0, PSNR, 17.5, 17.51),
    ("z-dim-mnist", 3, PSNR, 18.49, 18.5),
    ("z-dim-fashion", 0, PSNR, 17.5, 17.51),
    ("z-dim-fashion", 2, PSNR, 18.49, 18.5),
]  # fmt: skip


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts: they take most of the time."""
    for name in ("map_charts", "correlation_chart", "radius_chart"):
        monkeypatch.setattr(verdicts, name, lambda *_: ())


@pytest.mark.parametrize(("name", "run", "metric", "inside", "outside"), THRESHOLDS)
def test_claim_holds_inside_a_threshold_and_not_outside(
    no_charts: None, name: str, run: int, metric: str, inside: float, outside: float
):
    for value, holds in ((inside, True), (outside, False)):
        changes = [dict(change) for change in HOLDING[name]]
        changes[run][metric] = value
        assert check(name, *changes).holds is holds


def test_every_claim_has_a_threshold_and_holds_without_a_change(no_charts: None):
    assert set(HOLDING) == {name for name, *_ in THRESHOLDS} == set(CLAIMS_BY_NAME)
    assert all(check(name, *changes).holds for name, changes in HOLDING.items())


@pytest.mark.parametrize(
    ("name", "run", "metric", "value"),
    [
        ("vae-origin", 0, "cube.0.RATE", 0.0),  # the rule is about the boundaries 1 and 20
        ("vae-origin", 0, "samplers.normal.RATE", 0.0),
        ("vae-sphere", 0, "sphere.1.RATE", 0.0),  # another radius
        ("vae-radius", 1, "points.mean_radius", 0.1),  # the AE's z-points may lie anywhere
        ("fitted", 0, "samplers.diagonal.RATE", 0.0),
        ("fitted", 0, "samplers.gmm.RATE", 0.0),
        ("kl-factor", 1, "samplers.normal.RATE", 0.0),  # the rate rises from the smallest factor to the largest
        ("z-dim-faces", 2, PSNR, 18.0),  # z_dim 512 may be better or worse
        ("z-dim-mnist", 1, PSNR, 18.1),  # z_dim 4 is between
    ],
)
def test_other_metrics_do_not_change_a_verdict(no_charts: None, name: str, run: int, metric: str, value: float):
    changes = [dict(change) for change in HOLDING[name]]
    changes[run][metric] = value
    assert check(name, *changes).holds


# claim: how its evidence begins, or a part of it
EVIDENCE = {
    "reconstruct": "PSNR 11.0 dB of the mean training image, 20.0 dB of the reconstructions, SSIM 0.70; 75 % of the "
    "images show a face, and 80 % of the real images do",
    "denoise": "PSNR 10.0 dB of the inputs, 11.0 dB of the mean training image, 20.0 dB of the outputs, SSIM 0.10 and "
    "0.60; 75 % of the images show a face",
    "recolor-cifar10": "PSNR of the colours 20.0 dB of gray, 18.0 dB of the mean training image, 24.0 dB of the "
    "outputs; 75 % of the images show one of the set's classes",
    "ae-random": "N(0, 1): 5 % of the images show a face; cubes of boundary 0.5 to 20: at most 5 %; real images: 80 %",
    "vae-origin": "boundary 0.5: 75 %, boundary 1: 75 %, boundary 2: 75 %, boundary 5: 75 %, boundary 10: 75 %, "
    "boundary 20: 10 %; N(0, 1): 75 % of the images",
    "vae-sphere": "radius 14.1: 75 % of the images show a face, HOG-Frechet 2.00; of all measured radii, 14.1 is "
    "nearest to real images (2.00)",
    "vae-radius": "mean radius vae: 10.0, near-ae: 99.0; sqrt(z_dim) = 10.0",
    "one-region": "the largest connected part holds 100 % of the z-points; the silhouette of their best clustering is "
    "0.10 (of one Gaussian 0.20); their mean is 5.0 from the origin, their mean radius 10.0; the mean |correlation| is "
    "0.30 (of independent dimensions 0.01); the core's distance from normal is 0.010",
    "fitted": "images that show a face: N(0, 1) 75 % (HOG-Frechet 2.00), the fitted Gaussian without correlations 75 %",
    "kl-factor": "by kl_factor: 1e-6: 24.0 dB, 5 %, HOG-Frechet 2.00; 1: 23.0 dB, 75 %, HOG-Frechet 2.00; 6: 22.0 dB, "
    "90 %",
    "z-dim-mnist": "by z_dim: 2: 12.0 dB, 75 %, 2.00; 4: 15.0 dB, 75 %, 2.00; 12: 18.0 dB, 75 %, 2.00; 32: 18.2 dB",
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence_names_the_metrics_of_the_rule(no_charts: None, name: str):
    assert EVIDENCE[name] in check(name, *HOLDING[name]).evidence


@pytest.mark.parametrize("name", NEEDING_REAL)
def test_claim_does_not_hold_on_images_that_show_nothing(name: str):
    """0 % of the images are as many as of the real ones."""
    nothing = {f"samplers.{sampler}.RATE": 0.0 for sampler in SAMPLERS} | {f"cube.{i}.RATE": 0.0 for i in range(6)}
    verdict = check(name, HOLDING[name][0] | nothing | {"real.RATE": 0.0})
    assert not verdict.holds
    assert "real images" in verdict.evidence


def test_nearest_radius_of_the_sphere_may_be_another_than_sqrt_z_dim():
    verdict = check("vae-sphere", {"sphere.1.hog_frechet": 1.5, "sphere.2.hog_frechet": 1.7})
    assert "of all measured radii, 4 is nearest to real images (1.50)" in verdict.evidence


def test_each_verdict_has_the_images_or_charts_that_show_it():
    labels = {name: [row.label for row in check(name, *HOLDING[name]).image_rows] for name in HOLDING}
    assert all(isinstance(label, str) for row_labels in labels.values() for label in row_labels)
    assert labels["denoise"] == ["held-out images", "input of the encoder", "output of the decoder"]
    assert labels["ae-random"] == ["N(0, 1)", *(f"cube, boundary {boundary}" for boundary in (1, 5, 20))]
    assert labels["z-dim-mnist"] == [
        "held-out images",
        *(f"z_dim {z_dim}: reconstructions" for z_dim in (2, 4, 12, 32)),
    ]
    assert labels["kl-factor"] == [
        "held-out images",
        *(f"kl_factor {factor}: {kind}" for factor in ("1e-6", "1", "6") for kind in ("reconstructions", "N(0, 1)")),
    ]
    cells = [row.cells for row in check("fitted", *HOLDING["fitted"]).image_rows]
    assert cells[-1] == ("75 %", "2.00")  # of make_metrics
    assert [chart.name for chart in check("one-region", {}).charts] == ["plane", "tsne", "correlations"]
    assert [chart.name for chart in check("vae-radius", {}, {}).charts] == ["radius"]
