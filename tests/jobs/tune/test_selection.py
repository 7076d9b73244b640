"""The rule that chooses a search's best decoder."""

import pytest

from aecore.config import STORED_SAMPLERS
from jobs.tune.selection import (
    ScoredModel,
    choose_best,
    describe_noise,
    hypervolume,
    mean_score,
    pareto_front,
    score,
)

MODELS = (
    ScoredModel("sharpest", 25.0, 4.0), ScoredModel("beaten", 23.0, 4.0), ScoredModel("balanced", 24.0, 2.0),
    ScoredModel("at the slack", 22.0, 1.0), ScoredModel("beyond the slack", 21.9, 0.5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("slack", "best"),
    [(0.0, "sharpest"), (0.9, "sharpest"), (1.0, "balanced"), (2.9, "balanced"), (3.0, "at the slack"),
     (3.2, "beyond the slack")],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, -1])
def test_best_model_has_the_lowest_distance_within_the_slack(slack: float, best: str, step: int):
    assert choose_best(MODELS[::step], slack).name == best


def test_pareto_front_has_the_models_that_no_other_beats_by_falling_psnr():
    front = [model.name for model in pareto_front(MODELS)]
    assert front == ["sharpest", "balanced", "at the slack", "beyond the slack"]
    assert pareto_front(MODELS[:1]) == [MODELS[0]]
    equal_psnr = [ScoredModel("a", 20.0, 2.0), ScoredModel("b", 20.0, 1.0)]
    assert [model.name for model in pareto_front(equal_psnr)] == ["b"]


def test_no_model_raises():
    with pytest.raises(ValueError, match="no model to choose from: every trial failed"):
        choose_best([], 3.0)


def test_model_without_active_units_is_never_chosen():
    dead = ScoredModel("dead", 26.0, 0.1, alive=False)
    assert choose_best([*MODELS, dead], 3.0).name == "at the slack"
    with pytest.raises(ValueError, match="or ended without active units"):
        choose_best([dead], 3.0)


def test_distance_is_that_of_the_best_sampler_or_of_the_normal_one():
    metrics = {"valid_psnr": 20.0, "valid_active_units": 2.0, "hog_frechet_normal": 5.0, "hog_frechet_gaussian": 4.0}
    assert score("a", metrics, "best") == ScoredModel("a", 20.0, 4.0, "gaussian", alive=True)
    assert score("a", metrics, "normal") == ScoredModel("a", 20.0, 5.0, "normal", alive=True)
    assert not score("a", metrics | {"valid_active_units": 0.0}, "best").alive


def test_all_samplers_that_were_judged_are_compared():
    metrics = {"valid_psnr": 20.0, **{f"hog_frechet_{name}": 9.0 - i for i, name in enumerate(STORED_SAMPLERS)}}
    assert [score("a", metrics, sampler).sampler for sampler in ("best", "normal")] == ["gmm", "normal"]
    del metrics["hog_frechet_gmm"]
    assert (score("a", metrics, "best").sampler, score("a", metrics, "best").distance) == ("gaussian", 7.0)


def test_hypervolume_is_the_area_that_the_points_dominate():
    assert hypervolume([], (0, 10)) == 0
    assert hypervolume([(2, 4)], (0, 10)) == 12
    assert hypervolume([(2, 4), (3, 8), (1, 9), (1, 2)], (0, 10)) == 2 * 6 + 1 * 2 + 1 * 2
    assert hypervolume([(-1, 4), (2, 11)], (0, 10)) == 0


def seeds_of(name: str, *distances: float) -> list[ScoredModel]:
    return [ScoredModel(f"{name}{i}", 20.0, distance) for i, distance in enumerate(distances)]


def test_seeds_have_the_mean_score_and_the_name_of_the_best_one():
    assert mean_score(seeds_of("a", 4.0, 2.0, 3.0)) == ScoredModel("a1", 20.0, 3.0, num_seeds=3)
    assert not mean_score([ScoredModel("a", 20.0, 3.0), ScoredModel("b", 20.0, 3.0, alive=False)]).alive


@pytest.mark.parametrize(
    ("distances", "note"),
    [
        ([(4.0,), (5.0,)], "one seed each"),
        ([(4.0, 4.2, 3.8), (4.1, 4.3, 3.9)], "a2 leads b2 by 0.10 in mean distance, at a standard error of 0.16"),
        ([(4.0, 4.2, 3.8), (4.3, 4.5, 4.1)], "lies within noise: a2 leads b2 by 0.30"),  # 1.84 standard errors
        (
            [(4.0, 4.2, 3.8), (4.4, 4.6, 4.2)],
            "above noise: it leads by 0.40 in mean distance, at a standard error of 0.16",
        ),  # 2.45 standard errors
        ([(4.0, 4.1, 3.9), (5.0, 5.1, 4.9)], "is above noise: it leads by 1.00"),
        ([(4.0, 4.1), (5.0,)], "only one point has several seeds: its lead over the others may lie within the noise"),
    ],
)
@pytest.mark.parametrize("step", [1.0, -0.1])  # the second point is on the front, or the first one beats it in both
def test_note_says_if_the_choice_lies_within_noise(distances: list, note: str, step: float):
    worse_psnr = [step * i for i in range(len(distances))]
    points = [
        [ScoredModel(model.name, model.psnr + psnr, model.distance) for model in seeds_of(name, *values)]
        for name, values, psnr in zip("ab", distances, worse_psnr, strict=True)
    ]
    assert note in describe_noise(points, 3.0)


def test_a_point_beyond_the_slack_does_not_count_in_the_note():
    seeds = seeds_of("a", 4.0, 4.2, 3.8)
    worse = [ScoredModel(model.name + "b", model.psnr - 3.1, model.distance) for model in seeds]
    assert describe_noise([seeds, worse], 3.0) == ""


def test_points_without_active_units_do_not_count_in_the_note():
    dead = [ScoredModel(model.name, model.psnr, model.distance, alive=False) for model in seeds_of("a", 4.0, 4.2)]
    assert describe_noise([dead, dead, seeds_of("b", 5.0)], 3.0) == ""


def test_no_model_without_active_units_is_on_the_pareto_front():
    assert pareto_front([ScoredModel("dead", 26.0, 0.1, alive=False), *MODELS]) == pareto_front(MODELS)
