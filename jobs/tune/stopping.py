"""Early stopping of the trials of a campaign: MO-ASHA's rungs (Schmucker 2021) and dead models."""

import numpy as np

from aecore.config import Optim, Recipe
from jobs.tune.campaign import Campaign, Trial
from jobs.tune.selection import score

NUM_RUNGS = 2


def rungs(optim: Optim) -> list[int]:
    """Return the epochs at which trials are compared: the first judged ones, never the last epoch."""
    return [epoch for epoch in optim.judged_epochs if epoch < optim.epochs][:NUM_RUNGS]


def reason_to_stop(campaign: Campaign, trial: Trial, recipe: Recipe) -> str:
    """Return why `trial` is to stop after its last epoch, "" if it goes on.

    A model without active units after the KL's warm-up is dead: its decoder ignores z. At a rung the trial is compared
    with all trials that have reached that epoch, and goes on if it is on their Pareto front or in the better half by
    non-dominated sorting. A replicate always goes on: without its bad seeds a point's mean would be too good.
    """
    if recipe.search.stop == "none" or trial.replicate_of:
        return ""
    if trial.metrics.get("valid_active_units") == 0 and trial.epoch >= recipe.at(trial.point).loss.kl_warmup:
        return f"no active units after epoch {trial.epoch}"
    if trial.epoch not in rungs(recipe.optim) or trial.judged_at(trial.epoch) is None:
        return ""
    reached = [t for t in campaign.trials if t.judged_at(trial.epoch) is not None and t.epochs == trial.epochs]
    scores = [score(t.run, t.judged_at(trial.epoch) or {}, recipe.search.sampler) for t in reached]
    costs = np.array([(-model.psnr, model.distance) for model in scores])
    if in_better_half(costs, [t.run for t in reached].index(trial.run)):
        return ""
    return f"in the worse half of {len(reached)} trials at epoch {trial.epoch}"


def nondominated_ranks(costs: np.ndarray) -> np.ndarray:
    """Return the number of each point's front, 0 for the Pareto front, int (n,); `costs` (n, k) are minimised.

    A front is the points that no other point dominates once the fronts before it are removed (Deb 2002). Equal points
    share a front.
    """
    no_worse = np.all(costs[:, None] <= costs[None], axis=2)  # (n, n): i is no worse than j in each objective
    dominates = no_worse & np.any(costs[:, None] < costs[None], axis=2)
    ranks = np.full(len(costs), -1)
    front = 0
    while (ranks < 0).any():
        remaining = ranks < 0
        dominated = np.any(dominates[remaining], axis=0)
        ranks[remaining & ~dominated] = front
        front += 1
    return ranks


def in_better_half(costs: np.ndarray, row: int) -> bool:
    """Return True if point `row` of `costs` (n, k) is on the Pareto front or in a front within the better half.

    Points of one front are alike: it belongs to the better half if it lies there whole.
    """
    ranks = nondominated_ranks(costs)
    return bool(ranks[row] == 0 or (ranks <= ranks[row]).sum() <= len(costs) / 2)
