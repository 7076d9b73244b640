import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecore.data.shuffle import World, derive_seed, plan_epoch, step_rows, steps_per_epoch


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 400))
def test_plan_is_a_permutation_and_repeats(seed, epoch, count):
    plan = plan_epoch(seed, epoch, count)
    assert sorted(plan) == list(range(count))
    assert (plan == plan_epoch(seed, epoch, count)).all()


def test_epochs_and_seeds_differ():
    plans = [plan_epoch(seed, epoch, 100) for seed in range(3) for epoch in range(3)]
    assert len({tuple(plan) for plan in plans}) == 9


@given(st.integers(1, 200), st.integers(1, 40))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_workers_share_each_global_batch(size, count, batch):
    plan = plan_epoch(0, 0, count)
    seen = []
    for step in range(steps_per_epoch(count, batch)):
        parts = [step_rows(plan, step, batch, World(rank, size)) for rank in range(size)]
        together = np.concatenate([rows for rows, _ in parts])
        assert (together == plan[step * batch : (step + 1) * batch]).all()
        assert (np.concatenate([at for _, at in parts]) == np.arange(len(together))).all()
        lengths = [len(rows) for rows, _ in parts]
        assert max(lengths) - min(lengths) <= 1
        seen.extend(together)
    assert sorted(seen) == list(range(count))


def test_streams_of_counters_differ():
    assert len({derive_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64
