"""The findings of a study: each sentence follows from the metrics."""

from typing import Any

import numpy as np
import pytest

from aecore.metrics.distribution import NUM_REFERENCE
from jobs.study.findings import make_findings
from jobs.study.metrics import DEFINITIONS, column_headers, format_cells, format_rate, rates_differ

BOUNDARIES = (0.5, 1, 5, 20)


def scores(rate: float, distance: float = 2.0, copied: float = 0.0) -> dict[str, float]:
    return {"faces": rate, "hog_frechet": distance, "copied": copied}


def make_run(name: str = "a", *, cube: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5), **samplers: dict) -> dict[str, Any]:
    default_samplers = {key: scores(0.5) for key in ("normal", "sphere", "diagonal", "gaussian", "gmm")}
    return {
        "run": name, "z_dim": 100, "kl_factor": 1.0, "task": "reconstruct",
        "real": scores(0.95, 0.5), "samplers": {"reconstructions": scores(0.9)} | default_samplers | samplers,
        "cube": [{"boundary": b, **scores(rate)} for b, rate in zip(BOUNDARIES, cube, strict=True)],
        "sphere": [{"radius": r, **scores(0.5, d)} for r, d in ((1, 5.0), (8, 2.5), (40, 4.0))],
        "tasks": {"reconstruct": {"input_psnr": 100.0, "psnr": 20.0}},
        "ways": {"pairs": 64, "ways": {"straight": [{"t": t, "faces": 0.9} for t in (0, 0.25, 0.5, 0.75, 1)]}},
        "points": {
            "mean_radius": 10.0, "sqrt_z_dim": 10.0, "axes_90": 40, "coherent": True, "fragments": 1,
            "centre_radius": 1.0, "largest_fragment": 1.0,
        },
    }  # fmt: skip


def findings_text(*runs: dict[str, Any]) -> str:
    findings = make_findings({"judged": 256, "runs": list(runs)})
    return " ".join(sentence for sentences in findings.values() for sentence in sentences)


def test_table_has_the_metrics_of_the_study_alone():
    study: Any = {"judged": 256, "runs": [make_run()]}
    keys = ("recognised", "faces", "hog_frechet", "fid")
    assert column_headers(study, keys) == ["faces", "HOG-Frechet"]
    assert format_cells(scores(0.5, 2.0), keys) == ["50 %", "2.00"]


def test_fitted_gaussian_is_better_only_if_its_rate_differs():
    better = findings_text(make_run(normal=scores(0.0), gaussian=scores(0.96), diagonal=scores(0.75)))
    assert "0 % of the images of a from N(0, 1) show a face, and 96 % of those from a full Gaussian" in better
    assert "no significant difference" in findings_text(make_run(gmm=scores(0.52)))
    assert "no fit is as good as N(0, 1)" in findings_text(make_run(normal=scores(0.9)))


@pytest.mark.parametrize(
    ("diagonal", "full", "appears"), [(0.75, 0.96, True), (0.95, 0.96, False), (0.96, 0.75, False)]
)
def test_correlations_are_mentioned_only_if_they_raise_the_rate(diagonal: float, full: float, appears: bool):
    text = findings_text(make_run(diagonal=scores(diagonal), gaussian=scores(full)))
    assert ("The correlations" in text) == appears


@pytest.mark.parametrize(
    ("z_dim", "mean", "comparison"),
    [
        (100, 10.97, "close to that of N(0, 1), 10.0."),
        (100, 10.98, "1.1 times that of N(0, 1), 10.0."),
        (100, 8.98, "close to that of N(0, 1), 10.0."),
        (100, 8.97, "0.9 times that of N(0, 1), 10.0."),
        (100, 88.0, "8.8 times that of N(0, 1), 10.0."),
        (100, 2.0, "0.2 times that of N(0, 1), 10.0."),
        (2, 1.2533, "close to that of N(0, 1), 1.3."),  # sqrt(pi / 2); sqrt(z_dim) is 1.4
        (2, 1.4142, "1.1 times that of N(0, 1), 1.3."),
    ],
)
def test_mean_radius_is_compared_with_that_of_n01(z_dim: int, mean: float, comparison: str):
    run = make_run()
    run["z_dim"] = z_dim
    run["points"]["mean_radius"] = mean
    assert f"have a mean distance of {mean:.1f} from the origin, {comparison}" in findings_text(run)


def test_cube_finding_names_the_best_boundary_and_the_loss_beyond():
    falling = findings_text(make_run(cube=(0.8, 1.0, 0.3, 0.0)))
    assert "boundary 1, 100 % of the images of a show a face; at boundary 5 fewer than half do" in falling
    assert "at boundary 5 fewer than half do" in findings_text(make_run(cube=(0.4, 0.5, 0.49, 0.0)))
    assert "at most 49 %" in findings_text(make_run(cube=(0.4, 0.49, 0.4, 0.0)))
    low = findings_text(make_run(cube=(0.0, 0.02, 0.06, 0.05)))
    assert "In cubes of boundary 0.5 to 20, at most 6 % of the images of a show a face." in low
    assert "fewer than half" not in findings_text(make_run(cube=(0.9, 0.9, 0.9, 0.9)))


def test_sphere_finding_names_the_nearest_radius():
    text = findings_text(make_run())
    assert "nearest to real images at radius 8 (HOG-Frechet distance 2.50; 50 % show a face)" in text


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ({}, "They are one region;"),
        (
            {"coherent": False, "fragments": 2, "largest_fragment": 0.7},
            "They are not one region: the largest connected part holds 70 % of them;",
        ),
        ({"coherent": False}, "They are not one region: they form clusters"),
    ],
)
def test_region_finding_follows_fragments_and_clusters(points: dict[str, Any], sentence: str):
    run = make_run()
    run["points"] |= points
    assert sentence in findings_text(run)


def test_task_finding_compares_input_and_output():
    run = make_run() | {"task": "denoise", "tasks": {"denoise": {"input_psnr": 9.0, "psnr": 18.0}}}
    rises = "rises from 9.0 dB (input) to 18.0 dB (output), although the inputs are hardly recognisable."
    assert rises in findings_text(run)
    run["tasks"]["denoise"] = {"input_psnr": 10.0, "psnr": 18.0}
    assert "rises from 10.0 dB (input) to 18.0 dB (output). " in findings_text(run)
    for output, change in ((18.09, "stays at 18.1 dB."), (17.91, "stays at 17.9 dB."), (18.11, "rises from 18.0 dB")):
        run["tasks"]["denoise"] = {"input_psnr": 18.0, "psnr": output}
        assert f"the PSNR {change}" in findings_text(run)
    run["tasks"]["denoise"] = {"input_psnr": 20.0, "psnr": 18.0}
    assert "falls from 20.0 dB (input) to 18.0 dB (output)." in findings_text(run)
    assert "trained to" not in findings_text(make_run())


def test_recolor_finding_compares_the_colours():
    psnr = {"input_psnr": 25.0, "psnr": 20.0, "input_chroma_psnr": 21.0, "chroma_psnr": 24.0}
    text = findings_text(make_run() | {"task": "recolor", "tasks": {"recolor": psnr}})
    assert "trained to colour gray images: the PSNR of the colours rises from 21.0 dB (input) to 24.0 dB" in text


@pytest.mark.parametrize(("pairs", "end"), [(64, "at the ends 90 %."), (4, "at the ends 90 %: no significant")])
def test_interpolation_finding_compares_the_middle_with_the_ends(pairs: int, end: str):
    steps = [
        {"t": t, "faces": rate} for t, rate in zip((0, 0.25, 0.5, 0.75, 1), (1.0, 0.7, 0.4, 0.6, 0.8), strict=True)
    ]
    text = findings_text(make_run() | {"ways": {"pairs": pairs, "ways": {"straight": steps}}})
    assert f"line between two test images, 40 % of the images of a show a face, {end}" in text


def test_copies_are_mentioned_only_if_there_are_more_than_among_real_images():
    text = findings_text(make_run(gmm=scores(0.9, copied=0.3)))
    assert "30 % of a's images from gmm are close copies" in text
    assert "copies" not in findings_text(make_run(gmm=scores(0.9, copied=0.001)))


def test_definition_of_copies_says_with_how_many_training_images_they_are_compared():
    assert f"the nearest of at most {NUM_REFERENCE:,} evenly spaced training images" in DEFINITIONS["nearest_train"]


def test_several_runs_are_compared():
    a, b = make_run("a", normal=scores(0.0), gaussian=scores(0.96, 1.4)), make_run("b", normal=scores(0.92, 1.9))
    assert "From N(0, 1), b shows a face in 92 % of the images, a in 0 %." in findings_text(a, b)
    assert "gaussian of a has the lowest HOG-Frechet distance (1.40; 96 % show a face)" in findings_text(a, b)
    similar = findings_text(make_run("a"), make_run("b", normal=scores(0.52)))
    assert "the models show a face in 50 % to 52 % of the images: no significant difference." in similar
    assert list(make_findings({"judged": 256, "runs": [a]})) == ["a"]


def test_best_sampler_by_rate_is_named_if_it_is_not_the_nearest():
    high_rate = make_run("b", normal=scores(0.99, 1.9))
    different = findings_text(make_run("a", gaussian=scores(0.6, 1.4)), high_rate)
    assert "normal of b shows a face most often (99 %; 1.90)" in different
    same = findings_text(make_run("a", gaussian=scores(0.99, 1.4)), make_run("b"))
    assert "none shows a face significantly more often" in same


def with_classes(value: Any) -> Any:
    """Return the metrics with the rate of recognised classes in place of faces."""
    if isinstance(value, dict):
        return {"recognised" if key == "faces" else key: with_classes(nested) for key, nested in value.items()}
    return [with_classes(nested) for nested in value] if isinstance(value, list) else value


def test_labelled_dataset_has_classes_in_place_of_faces():
    run = with_classes(make_run())
    text = findings_text(run, run | {"run": "b"})
    assert "face" not in text
    assert "one of the set's classes" in text


def test_rates_are_rounded_but_never_to_0_or_100_percent():
    texts = {
        0: "0 %", 0.001: "under 1 %", 0.005: "under 1 %", 0.006: "1 %", 0.06: "6 %", 0.994: "99 %",
        0.995: "over 99 %", 0.999: "over 99 %", 1: "100 %",
    }  # fmt: skip
    assert {rate: format_rate(rate) for rate in texts} == texts


def test_extremes_of_equal_rates_differ_in_one_study_of_twenty_at_most():
    """With the limit of two rates, 0.12 of the studies with 3 rates and 0.49 of those with 8 would say so."""
    generator = np.random.default_rng(0)
    for num_compared in (3, 8):
        rates = generator.binomial(256, 0.5, (1_000, num_compared)) / 256
        differing = [rates_differ(max(study), min(study), 256, num_compared) for study in rates.tolist()]
        assert 0.03 < np.mean(differing) < 0.07


def test_best_of_several_rates_is_named_only_if_it_exceeds_their_range_by_chance():
    """Of 256 images 0.5 and 0.6 differ as two rates, 0 and 0.03 too; not as the extremes of three and more."""
    a, b, c = make_run("a"), make_run("b", normal=scores(0.6)), make_run("c")
    assert "From N(0, 1), b shows a face in 60 % of the images, a in 50 %." in findings_text(a, b)
    assert "From N(0, 1), the models show a face in 50 % to 60 % of the images: no" in findings_text(a, b, c)
    assert "60 % of those from a mixture of Gaussians fitted to its z-points: no" in findings_text(
        make_run(gmm=scores(0.6))
    )
    several = findings_text(make_run("a", gaussian=scores(0.5, 1.4)), make_run("b", gmm=scores(0.6)))
    assert "none shows a face significantly more often" in several
    assert "copies" not in findings_text(make_run(gmm=scores(0.9, copied=0.03)))


def test_rates_differ_beyond_two_standard_errors():
    assert rates_differ(0.0, 6 / 256, 256)
    assert not rates_differ(0.0, 5 / 256, 256)
    assert rates_differ(0.0, 0.06, 256)
    assert not rates_differ(0.50, 0.55, 256)
    assert not rates_differ(0.0, 0.0, 256)
