"""Compare samplers for a campaign's points on a synthetic response: `python tests/benchmarks/samplers.py`.

The response has the shape of those measured on faces: PSNR falls with kl_factor and has its best z_dim in the middle;
the distance of random points has a valley along kl_factor whose depth depends on z_dim; both with the noise of a seed.
Four trials run at once, as on a small cluster. Printed for each sampler: the mean over the seeds of the hypervolume
after the last trial, as a share of the best one that is possible, its standard error, how often the rule's choice is
within 0.2 of the best choice's distance, and the seconds that a suggestion takes.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from aecore.search_space import parse_space
from jobs.tune.plan import PointPlan
from jobs.tune.selection import ScoredModel, choose_best, hypervolume

SPACE = {"model.z_dim": [32, 64, 128, 200, 512], "loss.kl_factor": "log(0.003, 30)"}
REFERENCE = (14.0, 9.0)  # PSNR and distance of the worst models
SLACK = 3.0
SAMPLERS: dict[str, Callable[[int], Any]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=1),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=8),
}


def response(point: dict[str, Any], noise: np.random.Generator | None) -> tuple[float, float]:
    """Return PSNR and distance of a model trained at `point`."""
    kl, z = math.log10(point["loss.kl_factor"]), math.log2(point["model.z_dim"] / 128)
    psnr = 22.0 - 0.35 * z**2 - 4.0 / (1 + math.exp(-2.0 * (kl - 0.7)))
    distance = 2.2 + 0.9 * abs(kl + 0.2 - 0.3 * z) ** 1.3 + 0.12 * z**2
    if noise is not None:
        psnr, distance = psnr + noise.normal(0, 0.1), distance + noise.normal(0, 0.3)
    return psnr, distance


def search(name: str, seed: int, trials: int, parallel: int) -> tuple[float, float, float]:
    """Return the hypervolume of the points without noise, the best choice's distance, and seconds a suggestion."""
    noise = np.random.default_rng(seed)
    plan = PointPlan(parse_space(SPACE), [], trials, seed)
    plan._study.sampler = SAMPLERS[name](seed)
    running: list[dict[str, Any]] = []
    results: list[tuple[dict[str, Any], tuple[float, float]]] = []
    seconds = 0.0
    for number in range(trials + parallel):
        if number < trials:
            start = time.perf_counter()
            point = plan.next()
            seconds += time.perf_counter() - start
            assert point is not None
            running.append(point)
        if running and (len(running) >= parallel or number >= trials):
            ended = running.pop(int(noise.integers(len(running))))
            results.append((ended, response(ended, noise)))
            plan.tell(*results[-1])
    best = choose_best([ScoredModel(str(i), *values) for i, (_, values) in enumerate(results)], SLACK)
    true = [response(point, None) for point, _ in results]
    return hypervolume(true, REFERENCE), true[int(best.name)][1], seconds / trials


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare samplers on a synthetic response.")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="optuna")
    grid = [
        {"model.z_dim": z, "loss.kl_factor": k}
        for z in SPACE["model.z_dim"]
        for k in np.geomspace(0.003, 30, 200).tolist()
    ]
    true = [response(point, None) for point in grid]
    best_volume = hypervolume(true, REFERENCE)
    best_distance = choose_best([ScoredModel(str(i), *values) for i, values in enumerate(true)], SLACK).distance
    print("sampler  hypervolume  s.e.    within 0.2  excess distance  s/suggestion")
    for name in args.samplers.split(","):
        rows = np.array([search(name, seed, args.trials, args.parallel) for seed in range(args.seeds)])
        share, excess = rows[:, 0] / best_volume, rows[:, 1] - best_distance
        error = share.std(ddof=1) / math.sqrt(len(share))
        close = f"{int((excess < 0.2).sum())}/{len(excess)}"
        print(
            f"{name:<8} {share.mean():11.4f}  {error:.4f}  {close:>10}  {excess.mean():15.3f}  {rows[:, 2].mean():.3f}"
        )


if __name__ == "__main__":
    main()
