"""The points of a search: a grid, the first ones, a space-filling start, then those near the best results."""

import math

import numpy as np
import pytest

from aecore.search_space import parse_space
from jobs.tune.plan import PointPlan

SPACE = {"model.z_dim": [64, 128, 200, 512], "loss.kl_factor": "log(0.01, 100)"}


def values_at(point: dict) -> tuple[float, float]:
    """Return PSNR and distance; both are best at kl_factor 1."""
    distance = abs(math.log10(point["loss.kl_factor"]))
    return 30 - distance, distance


def plan_with(trials: int = 30, first: tuple = (), space: dict = SPACE) -> PointPlan:
    return PointPlan(parse_space(space), first, trials, seed=0)


def choose(plan: PointPlan) -> dict:
    point = plan.next()
    assert point is not None
    return point


def test_optuna_logs_and_warns_of_nothing(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        plan = plan_with()
        point = choose(plan)
        plan.tell(point, values_at(point))
    finally:
        optuna.logging.disable_propagation()
    assert (caplog.messages, recwarn.list) == ([], [])


def test_grid_has_each_point_once():
    plan = plan_with(4, space={"a": [1, 2], "b": ["x", "y"]})
    points = [plan.next() for _ in range(4)]
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]
    assert plan.next() is None


def test_first_points_come_first_and_none_comes_twice():
    first = {"model.z_dim": 200, "loss.kl_factor": 6.0}
    plan = plan_with(first=(first, dict(first)))
    points = [plan.next() for _ in range(8)]
    assert points[0] == first
    assert len({str(point) for point in points}) == 8


def test_numbers_of_another_type_are_no_further_points():
    """Before, a first point of 1.0 counted beside the listed 1: the search ended a point early, and never was done."""
    plan = plan_with(9, first=({"a": 1.0, "b": 2.0},), space={"a": [0.5, 1, 2], "b": "int(2, 4)"})
    plan.add({"a": 2.0, "b": 3}, None)  # as an earlier version chose it
    points = list(iter(plan.next, None))
    assert str(points[0]) == "{'a': 1, 'b': 2}"
    assert len({str(point) for point in points}) == len(points) == 8


def test_start_fills_the_space():
    """Check that each quarter of the range of kl_factor has two of eight points."""
    plan = plan_with()
    points = [plan.next() for _ in range(8)]
    quarters = [math.log10(point["loss.kl_factor"]) + 2 for point in points if point]
    assert sorted(int(quarter) for quarter in quarters) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(point["model.z_dim"] for point in points if point) == [64, 64, 128, 128, 200, 200, 512, 512]


def test_points_after_the_start_lie_near_the_best_results():
    plan = plan_with()
    for exponent in np.linspace(-1.9, 1.9, 12):
        point = {"model.z_dim": 128, "loss.kl_factor": 10.0**exponent}
        plan.add(point, values_at(point))
    distances = []
    for _ in range(4):
        point = choose(plan)
        plan.tell(point, values_at(point))
        distances.append(values_at(point)[1])
    assert np.mean(distances) < 0.4  # of random points 1


@pytest.mark.parametrize("values", [None, (20.0, 5.0)])
def test_result_of_a_failed_or_finished_point_is_taken(values):
    plan = plan_with()
    for _ in range(8):
        point = choose(plan)
        plan.tell(point, values)
    assert plan.next()


def test_each_told_point_is_closed_in_optuna():
    """A point that is told nothing would count as running, and its likely result as one."""
    plan = plan_with()
    for values in (None, (20.0, 5.0)):
        plan.tell(choose(plan), values)
    choose(plan)
    assert [trial.state.name for trial in plan._study.trials] == ["FAIL", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize("keys", [1, 3])
def test_the_gaussian_process_takes_over_after_two_points_a_key_and_two(keys: int, monkeypatch: pytest.MonkeyPatch):
    plan = plan_with(space={str(key): "uniform(0, 1)" for key in range(keys)})
    monkeypatch.setattr(plan, "_ask", lambda: "asked")
    points = []
    while (point := plan.next()) != "asked":
        assert isinstance(point, dict)
        plan.tell(point, (1.0, 1.0))
        points.append(point)
    assert len(points) == 2 * keys + 2


def test_last_points_that_the_sequence_misses_are_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.tune.plan.SOBOL_POINTS", 1)
    plan = plan_with(100, space={"a": "int(1, 4)", "b": "int(-1, 1)"})
    points = [(point["a"], point["b"]) for point in iter(plan.next, None)]
    assert sorted(points) == [(a, b) for a in (1, 2, 3, 4) for b in (-1, 0, 1)]


def test_finite_space_ends_after_its_last_point():
    plan = plan_with(100, space={"a": "int(1, 3)", "b": ["x", "y"]})
    points = []
    while point := plan.next():
        plan.tell(point, (float(len(points)), 1.0))
        points.append((point["a"], point["b"]))
    assert sorted(points) == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]


def test_key_of_one_value_is_not_searched():
    plan = plan_with(space={"a": [5], "b": "uniform(0, 1)"})
    for i in range(7):
        point = choose(plan)
        assert point["a"] == 5
        plan.tell(point, (float(i), 1.0))
