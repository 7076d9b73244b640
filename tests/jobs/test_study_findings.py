"""The sentences of a study are chosen by its numbers."""

from typing import Any

import pytest

from jobs.study.findings import differ, findings, percent


def scores(hit: float, distance: float = 2.0) -> dict[str, float]:
    return {"hit_rate": hit, "hog_frechet": distance, "swd": 100.0}


def a_run(name: str = "a", **samplers: dict[str, float]) -> dict[str, Any]:
    known = {"reconstructions": scores(0.9), "normal": scores(0.5), "diagonal": scores(0.5), "gaussian": scores(0.5)}
    rows = [{"t": t, **scores(0.9)} for t in (0, 0.25, 0.5, 0.75, 1)]
    return {
        "run": name, "z_dim": 100, "kl_factor": 1.0, "task": "reconstruct",
        "real": scores(0.95, 0.5), "samplers": known | samplers,
        "cube": [{"boundary": b, **scores(0.5)} for b in (0.5, 1, 5, 20)],
        "tasks": {"reconstruct": {"input_psnr": 100.0, "psnr": 20.0}},
        "interpolation": {"straight": rows}, "statistics": {"radius_mean": 10.0, "axes_90": 40, "axes_99": 80},
    }  # fmt: skip


def said(*runs: dict[str, Any]) -> str:
    groups = findings({"judged": 256, "pairs": 64, "runs": list(runs)})
    return " ".join(sentence for _, sentences in groups for sentence in sentences)


def test_a_fit_rescues_only_where_it_does():
    assert "0 % of the pictures from N(0, 1) and in 96 % of those from a full Gaussian" in said(
        a_run(normal=scores(0.0), gaussian=scores(0.96), diagonal=scores(0.75))
    )
    assert "no difference that 256 pictures could show" in said(a_run(normal=scores(0.5), gaussian=scores(0.52)))
    assert "the fit helps nothing" in said(a_run(normal=scores(0.9), gaussian=scores(0.5), diagonal=scores(0.5)))


def test_correlations_are_named_only_where_they_matter():
    assert "belong together" in said(a_run(diagonal=scores(0.75), gaussian=scores(0.96)))
    for diagonal, gaussian in ((0.95, 0.96), (0.96, 0.75)):
        assert "belong together" not in said(a_run(diagonal=scores(diagonal), gaussian=scores(gaussian)))


@pytest.mark.parametrize(
    ("mean", "says"),
    [(10.4, "about sqrt(100) = 10.0"), (88.0, "8.8 times as far"), (2.0, "20 % of the distance")],
)
def test_the_radius_beside_that_of_n01(mean: float, says: str):
    run = a_run()
    run["statistics"]["radius_mean"] = mean
    assert says in said(run)


def test_the_cube():
    run = a_run()
    for row, rate in zip(run["cube"], (0.8, 1.0, 0.3, 0.0), strict=True):
        row["hit_rate"] = rate
    assert "boundary 1, a shows a face in 100 % of the pictures; from boundary 5 on in fewer than half" in said(run)
    for row in run["cube"]:
        row["hit_rate"] = 0.06
    assert "In no cube from boundary 0.5 to 20 does a show a face in more than 6 %" in said(run)


def test_a_task_is_told_as_it_went():
    run = a_run() | {"task": "denoise", "tasks": {"denoise": {"input_psnr": 9.0, "psnr": 18.0}}}
    assert "rises from 9.0 dB of its inputs to 18.0 dB, though next to nothing can be seen" in said(run)
    run["tasks"]["denoise"]["psnr"] = 7.0
    assert "falls from 9.0 dB" in said(run)
    assert "trained to" not in said(a_run())


def test_runs_side_by_side():
    a, b = a_run("a", normal=scores(0.0), gaussian=scores(0.96, 1.4)), a_run("b", normal=scores(0.92, 1.9))
    assert "From N(0, 1), b shows a face in 92 % of the pictures, a in 0 %" in said(a, b)
    assert "lowest HOG-Frechet distance of all samplers has a with gaussian (1.40, 96 % faces)" in said(a, b)
    alike = said(a_run("a", normal=scores(0.5)), a_run("b", normal=scores(0.52)))
    assert "no model shows more faces than the others" in alike
    assert "side by side" not in dict(findings({"judged": 256, "pairs": 64, "runs": [a]}))


def test_the_two_measures_may_disagree():
    sharp, smooth = a_run("a", gaussian=scores(0.6, 1.4)), a_run("b", normal=scores(0.99, 1.9))
    assert "the two measures do not agree" in said(sharp, smooth)
    both = a_run("a", gaussian=scores(0.99, 1.4))
    assert "it has the highest hit rate too" in said(both, a_run("b"))


def without(value: Any, key: str) -> Any:
    """`value` with `key` left out of every dict in it."""
    if isinstance(value, dict):
        return {name: without(one, key) for name, one in value.items() if name != key}
    return [without(one, key) for one in value] if isinstance(value, list) else value


def test_without_a_hit_rate_no_face_is_spoken_of():
    run = without(a_run(), "hit_rate")
    assert "face" not in said(run, run)
    assert "PSNR of 20.0 dB" in said(run, run)


def test_rates_and_their_differences():
    assert [percent(rate) for rate in (0, 0.001, 0.06, 0.999, 1)] == ["0 %", "under 1 %", "6 %", "over 99 %", "100 %"]
    assert differ(0.0, 0.06, 256)
    assert not differ(0.50, 0.55, 256)
    assert not differ(0.0, 0.0, 256)
