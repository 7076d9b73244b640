"""Trials that share a GPU: how many, from the memory and the speed of their first steps."""

from collections.abc import Callable

import pytest
import torch

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from jobs.train.worker import fits_device
from jobs.tune.packing import StepProbe, choose_per_gpu, heaviest_recipe, max_per_gpu, trials_per_gpu

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits={})
TINY = {"model": {"z_dim": 3, "channels": [4, 4, 4, 4]}, "optim": {"batch": 8}}


def saturating(capacity: float) -> Callable[[int], float]:
    """Return the steps per second of n trials of 100 steps/s each on a GPU that takes at most `capacity`."""
    return lambda count: min(100.0 * count, capacity)


@pytest.mark.parametrize(
    ("rate", "memory_share", "limit", "expected"),
    [
        (saturating(950), 0.01, 64, 8),  # 16 would have 950 steps/s, 8 have 800
        (saturating(1e9), 0.01, 64, 50),  # half of the memory, the other half is for the images
        (saturating(1e9), 0.11, 64, 4),
        (saturating(1e9), 0.01, 6, 6),
        (saturating(100), 0.01, 64, 1),
        (saturating(120), 0.01, 64, 2),  # a gain of a fifth
        (saturating(119), 0.01, 64, 1),
        (saturating(1e9), 0.0, 5, 5),
        (saturating(1e9), 0.9, 5, 1),
        (lambda count: 100.0 * count * (count <= 4), 0.01, 64, 4),  # more of them fail
        (lambda count: 0.0, 0.0, 64, 1),  # even one fails
    ],
)
def test_trials_share_a_gpu_as_long_as_they_train_faster_together(rate, memory_share, limit, expected):
    assert choose_per_gpu(limit, lambda count: (rate(count), memory_share)) == expected


@pytest.mark.parametrize(
    ("nodes", "search", "expected"),
    [
        (32 * [{"CPU": 8, "GPU": 1}], {"trials": 12}, 1),
        (32 * [{"CPU": 8, "GPU": 1}], {"trials": 64}, 2),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64}], {"trials": 100}, 8),
        ([{"CPU": 16, "GPU": 1}], {"trials": 12}, 12),
        ([{"CPU": 16, "GPU": 1}], {"trials": 12, "parallel": 3}, 3),
        ([{"CPU": 16, "GPU": 8}], {"trials": 12}, 1),  # two would leave GPUs idle
    ],
)
def test_no_gpu_stays_idle_and_each_trial_has_a_cpu(nodes, search, expected):
    assert max_per_gpu(nodes, check_recipe({"search": search})) == expected


def test_named_number_is_not_measured():
    assert trials_per_gpu(check_recipe({"search": {"per_gpu": 4}}), MANIFEST) == 4


def test_heaviest_recipe_has_the_greatest_value_of_each_number():
    space = {"model.z_dim": "int(2, 300)", "optim.batch": [64, 32], "model.norm": ["none", "batch"]}
    recipe = heaviest_recipe(check_recipe({"search": {"space": space}}))
    assert (recipe.model.z_dim, recipe.optim.batch, recipe.model.norm) == (300, 64, "none")
    space = {"optim.warmup": "uniform(0, 9)"}  # more than the epochs of the recipe would be refused
    assert heaviest_recipe(check_recipe({"search": {"space": space}})).optim.warmup == 9


def test_measured_trial_takes_the_steps_of_a_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.tune.packing.MEASURED_S", 0.1)
    probe = StepProbe(check_recipe(TINY), size=16, channels=3)
    assert probe.steps_per_second() > 1  # not its seconds a step
    assert probe.memory_share() == 0


def test_each_trial_of_a_shared_gpu_takes_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    device = torch.device("cuda")
    assert [fits_device("auto", nbytes, device, 0.25) for nbytes in (12, 13)] == [True, False]
    assert [fits_device("auto", nbytes, device) for nbytes in (50, 51)] == [True, False]
    with pytest.raises(ValueError, match=r"data\.cache=device"):
        fits_device("device", 26, device, 0.25)
