"""The rungs of a campaign, and the trials that go on there."""

import numpy as np
import pytest

from aecore.config import Optim
from jobs.tune.stopping import in_better_half, nondominated_ranks, rungs


def test_rungs_are_the_first_two_judged_epochs_and_never_the_last():
    assert rungs(Optim(epochs=10)) == [2, 4]
    assert rungs(Optim(epochs=1)) == []
    for epochs in range(2, 30):
        assert epochs not in rungs(Optim(epochs=epochs))


def test_ranks_number_the_fronts():
    """Three fronts, one of which has two equal points; the order of the points does not matter."""
    costs = np.array([[0, 3], [1, 1], [3, 0], [1, 2], [2, 1], [2, 1], [3, 3]])
    ranks = np.array([0, 0, 0, 1, 1, 1, 2])
    order = np.random.default_rng(0).permutation(len(costs))
    np.testing.assert_array_equal(nondominated_ranks(costs), ranks)
    np.testing.assert_array_equal(nondominated_ranks(costs[order]), ranks[order])


@pytest.mark.parametrize("seed", range(5))
def test_ranks_agree_with_their_definition(seed: int):
    costs = np.random.default_rng(seed).integers(0, 6, (30, 2))
    ranks = nondominated_ranks(costs)
    for row, rank in enumerate(ranks):
        dominating = (costs <= costs[row]).all(1) & (costs < costs[row]).any(1)
        assert rank == (ranks[dominating].max() + 1 if dominating.any() else 0)


def test_front_and_better_half_go_on():
    chain = np.array([[i, i] for i in range(6)])
    assert [in_better_half(chain, row) for row in range(6)] == [True, True, True, False, False, False]
    assert [in_better_half(chain[:5], row) for row in range(5)] == [True, True, False, False, False]
    cut_front = np.array([[0, 0], [1, 3], [2, 2], [3, 1]])  # half of it would lie in the better half
    assert [in_better_half(cut_front, row) for row in range(4)] == [True, False, False, False]
    front = np.array([[i, -i] for i in range(5)])
    assert all(in_better_half(front, row) for row in range(5))
    assert in_better_half(chain[:1], 0)
    assert not in_better_half(chain[:2], 1)
