"""The sentences of a study are chosen by its numbers."""

from typing import Any

import pytest

from jobs.study.findings import differ, findings, percent


def scores(rate: float, distance: float = 2.0, copied: float = 0.0) -> dict[str, float]:
    return {"faces": rate, "hog_frechet": distance, "copied": copied}


def a_run(name: str = "a", *, cube: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5), **samplers: dict) -> dict[str, Any]:
    known = {key: scores(0.5) for key in ("normal", "sphere", "diagonal", "gaussian", "gmm")}
    return {
        "run": name, "z_dim": 100, "kl_factor": 1.0, "task": "reconstruct",
        "real": scores(0.95, 0.5), "samplers": {"reconstructions": scores(0.9)} | known | samplers,
        "cube": [{"boundary": b, **scores(rate)} for b, rate in zip((0.5, 1, 5, 20), cube, strict=True)],
        "sphere": [{"radius": r, **scores(0.5, d)} for r, d in ((1, 5.0), (8, 2.5), (40, 4.0))],
        "tasks": {"reconstruct": {"input_psnr": 100.0, "psnr": 20.0}},
        "ways": {"pairs": 64, "ways": {"straight": [{"t": t, "faces": 0.9} for t in (0, 0.25, 0.5, 0.75, 1)]}},
        "points": {
            "mean_radius": 10.0, "sqrt_z_dim": 10.0, "axes_90": 40, "coherent": True, "fragments": 1,
            "centre_radius": 1.0, "largest_fragment": 1.0,
        },
    }  # fmt: skip


def said(*runs: dict[str, Any]) -> str:
    groups = findings({"judged": 256, "runs": list(runs)})
    return " ".join(sentence for sentences in groups.values() for sentence in sentences)


def test_a_fit_rescues_only_where_it_does():
    rescued = a_run(normal=scores(0.0), gaussian=scores(0.96), diagonal=scores(0.75))
    assert "a face in 0 % of the pictures from N(0, 1) and in 96 % of those from a full Gaussian" in said(rescued)
    assert "no difference beyond chance" in said(a_run(gmm=scores(0.52)))
    assert "no fit is as good as N(0, 1)" in said(a_run(normal=scores(0.9)))


def test_correlations_are_named_only_where_they_matter():
    assert "correlations" in said(a_run(diagonal=scores(0.75), gaussian=scores(0.96)))
    for diagonal, gaussian in ((0.95, 0.96), (0.96, 0.75)):
        assert "The correlations" not in said(a_run(diagonal=scores(diagonal), gaussian=scores(gaussian)))


@pytest.mark.parametrize(
    ("mean", "says"), [(10.4, "near to where"), (88.0, "8.8 times as far"), (2.0, "0.2 times as far")]
)
def test_the_radius_beside_that_of_n01(mean: float, says: str):
    run = a_run()
    run["points"]["mean_radius"] = mean
    assert f"lie {mean:.1f} from the origin on average, {says}" in said(run)


def test_the_cube():
    falls = said(a_run(cube=(0.8, 1.0, 0.3, 0.0)))
    assert "boundary 1, a shows a face in 100 % of the pictures; at boundary 5 in fewer than half" in falls
    never = said(a_run(cube=(0.0, 0.02, 0.06, 0.05)))
    assert "In no cube from boundary 0.5 to 20 does a show a face in more than 6 %" in never
    assert "fewer than half" not in said(a_run(cube=(0.9, 0.9, 0.9, 0.9)))


def test_the_sphere():
    assert "nearest to real images at radius 8 (HOG-Frechet distance 2.50; 50 % show a face)" in said(a_run())


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({}, "They are one region"),
        ({"coherent": False, "fragments": 2, "largest_fragment": 0.7}, "not one region: 70 % of them hang together"),
        ({"coherent": False}, "not one region: they fall into clusters"),
    ],
)
def test_the_region(shape: dict[str, Any], says: str):
    run = a_run()
    run["points"] |= shape
    assert says in said(run)


def test_a_task_is_told_as_it_went():
    run = a_run() | {"task": "denoise", "tasks": {"denoise": {"input_psnr": 9.0, "psnr": 18.0}}}
    assert "rises from 9.0 dB of its inputs to 18.0 dB, though next to nothing can be seen" in said(run)
    run["tasks"]["denoise"] = {"input_psnr": 20.0, "psnr": 18.0}
    assert "falls from 20.0 dB of its inputs to 18.0 dB." in said(run)
    assert "trained to" not in said(a_run())


def test_copies_are_told_only_where_there_are_some():
    assert "30 % of a's pictures from gmm are close copies" in said(a_run(gmm=scores(0.9, copied=0.3)))
    assert "copies" not in said(a_run(gmm=scores(0.9, copied=0.001)))


def test_runs_side_by_side():
    a, b = a_run("a", normal=scores(0.0), gaussian=scores(0.96, 1.4)), a_run("b", normal=scores(0.92, 1.9))
    assert "From N(0, 1), b shows a face in 92 % of the pictures, a in 0 %." in said(a, b)
    assert "gaussian of a has the lowest HOG-Frechet distance (1.40; 96 % show a face)" in said(a, b)
    alike = said(a_run("a"), a_run("b", normal=scores(0.52)))
    assert "no model shows a face more often than another beyond chance: from 50 % to 52 %" in alike
    assert list(findings({"judged": 256, "runs": [a]})) == ["a"]


def test_the_two_measures_may_disagree():
    sharp = a_run("a", gaussian=scores(0.6, 1.4))
    assert "normal of b shows a face most often (99 %; 1.90)" in said(sharp, a_run("b", normal=scores(0.99, 1.9)))
    assert "none shows a face more often beyond chance" in said(a_run("a", gaussian=scores(0.99, 1.4)), a_run("b"))


def renamed(value: Any) -> Any:
    """`value` as of a set without faces."""
    if isinstance(value, dict):
        return {"recognised" if key == "faces" else key: renamed(one) for key, one in value.items()}
    return [renamed(one) for one in value] if isinstance(value, list) else value


def test_a_set_without_faces_is_told_its_classes():
    run = renamed(a_run())
    both = said(run, run | {"run": "b"})
    assert "face" not in both
    assert "one of the set's classes" in both


def test_rates_and_their_differences():
    assert [percent(rate) for rate in (0, 0.001, 0.06, 0.999, 1)] == ["0 %", "under 1 %", "6 %", "over 99 %", "100 %"]
    assert differ(0.0, 0.06, 256)
    assert not differ(0.50, 0.55, 256)
    assert not differ(0.0, 0.0, 256)
