import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecore.data.shuffle import BatchSampler, World, derive_seed, plan_epoch, steps_per_epoch


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 400))
def test_a_plan_is_a_reproducible_permutation(seed, epoch, count):
    plan = plan_epoch(seed, epoch, count)
    assert sorted(plan) == list(range(count))
    assert (plan == plan_epoch(seed, epoch, count)).all()


def test_epochs_and_seeds_differ():
    plans = [plan_epoch(seed, epoch, 100) for seed in range(3) for epoch in range(3)]
    assert len({tuple(plan) for plan in plans}) == 9


@given(st.integers(1, 200), st.integers(1, 40))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_workers_slice_each_global_batch(size, count, batch):
    plan = plan_epoch(0, 0, count)
    visited = []
    workers = [BatchSampler(0, batch, World(rank, size)).steps(count, 0) for rank in range(size)]
    for step, slices in enumerate(zip(*workers, strict=True)):
        global_batch = np.concatenate([rows for rows, _, _ in slices])
        assert (global_batch == plan[step * batch : (step + 1) * batch]).all()
        assert (np.concatenate([positions for _, positions, _ in slices]) == np.arange(len(global_batch))).all()
        lengths = [len(rows) for rows, _, _ in slices]
        assert max(lengths) - min(lengths) <= 1
        visited.extend(global_batch)
    assert sorted(visited) == list(range(count))


def test_seeds_of_different_counters_differ():
    assert len({derive_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 2, [3]), (5, 4, [5]), (0, 4, [])],
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_last_batch_of_one_is_merged_if_asked_for(count: int, batch: int, sizes: list[int], world_size: int):
    samplers = [BatchSampler(7, batch, World(rank, world_size), min_last=2) for rank in range(world_size)]
    epochs = [list(sampler.steps(count, 3)) for sampler in samplers]
    assert all([size for _, _, size in steps] == sizes for steps in epochs)
    assert steps_per_epoch(count, batch, 2) == len(sizes)
    for step, size in enumerate(sizes):
        positions = np.concatenate([steps[step][1] for steps in epochs])
        assert sorted(positions) == list(range(size))
        assert [len(rows) for steps in epochs for rows in (steps[step][0],)] == [
            len(part) for part in np.array_split(np.arange(size), world_size)
        ]
    rows = np.concatenate([steps[step][0] for step in range(len(sizes)) for steps in epochs]) if sizes else []
    assert sorted(rows) == list(range(count))
    for first in range(len(sizes)):
        resumed = list(samplers[0].steps(count, 3, first))
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(resumed, epochs[0][first:], strict=True))
