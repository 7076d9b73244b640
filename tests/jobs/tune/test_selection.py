"""The rule that chooses a search's best decoder."""

import pytest

from jobs.tune.selection import ScoredModel, choose_best, pareto_front

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
