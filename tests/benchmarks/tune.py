"""Measure a campaign: `python tests/benchmarks/tune.py overhead|stopping`, on an idle machine, on CPUs or GPUs.

overhead: trials of generated faces. Printed: the share of the cores' (or GPUs') time, from the first trial's start to
the last one's end, in which trials run, and in which they train; and the seconds of a trial that are neither training
nor evaluation: start-up, checkpoints, the final statistics. With `--per-gpu 4` four trials share a GPU.

stopping: the same points with and without early stopping, for each of `--seeds`; with `--data`, on that dataset.
Printed: the best run's point, PSNR and distance of both, and the share of the epochs that were trained.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from aecore.config import load_recipe
from jobs.recipes import RECIPES
from jobs.run_store import find_run
from jobs.tune.selection import score


def overhead(args: argparse.Namespace) -> None:
    """Run one campaign and print how busy it kept the devices."""
    campaign = run(args, [f"search.trials={args.trials}", "search.stop=none", f"search.per_gpu={args.per_gpu}"])
    trials = campaign["trials"]
    start = min(trial["spans"][0][0] for trial in trials)
    wall = max(trial["spans"][-1][1] for trial in trials) - start
    running = {t["run"]: sum(end - begin for begin, end in t["spans"]) for t in trials}
    training = {t["run"]: sum(e["epoch_seconds"] for e in find_run(t["run"]).epochs().values()) for t in trials}
    devices = args.devices or os.cpu_count()
    share = {name: sum(seconds[t["run"]] * t["devices"] for t in trials) / (wall * devices)
             for name, seconds in (("running", running), ("training", training))}  # fmt: skip
    other = sorted(running[run] - training[run] for run in running)
    print(f"{len(trials)} trials in {wall:.1f} s on {devices} {campaign['unit']}s")
    print(f"running {share['running']:.3f}, training {share['training']:.3f} of the devices' time")
    print(f"seconds of a trial beside its training steps: {', '.join(f'{seconds:.1f}' for seconds in other)}")


def stopping(args: argparse.Namespace) -> None:
    """Run each seed's campaign without and with early stopping, and compare verdicts and epochs."""
    for seed in range(args.seeds):
        results = {}
        for stop in ("none", "dominated"):
            # Without the runs of the first campaign the second one would take them over.
            os.environ["ZPOINT_HOME"] = str(Path(args.home) / f"{stop}-{seed}")
            results[stop] = run(args, [f"search.trials={args.trials}", f"search.stop={stop}", f"optim.seed={seed}"])
        epochs = {stop: sum(trial["epoch"] for trial in c["trials"]) for stop, c in results.items()}
        for stop, campaign in results.items():
            best = next(trial for trial in campaign["trials"] if trial["run"] == campaign["best"])
            model = score(best["run"], best["judged"][-1], "best")
            print(f"seed {seed} stop={stop:<9}  {epochs[stop]} epochs ({epochs[stop] / epochs['none']:.2f})  "
                  f"{best['point']}  PSNR {model.psnr:.2f}  distance {model.distance:.2f}", flush=True)  # fmt: skip


def run(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from jobs.tune.job import tune

    common = [f"data.uri={args.data}", f"optim.epochs={args.epochs}", *args.overrides]
    return tune(load_recipe(RECIPES / f"{args.recipe}.yaml", [*common, *overrides]), args.recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a campaign.")
    parser.add_argument("measure", choices=("overhead", "stopping"))
    parser.add_argument("overrides", nargs="*", help="recipe keys, as in optim.batch=64")
    parser.add_argument("--recipe", default="faces-vae")
    parser.add_argument("--data", default="", help="dataset (default: 4,000 generated faces)")
    parser.add_argument("--home", default="", help="ZPOINT_HOME of the campaigns (default: a temporary folder)")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--per-gpu", type=int, default=1)
    parser.add_argument("--devices", type=int, default=0, help="cores or GPUs of the cluster (default: the CPUs)")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.home = args.home or folder
        os.environ.setdefault("ZPOINT_HOME", args.home)
        os.environ.setdefault("ZPOINT_CACHE", f"{args.home}/cache")
        if not args.data:
            from jobs.ingest.job import ingest

            args.data = f"{args.home}/faces"
            ingest("generated", None, args.data, limit=4_000, shard_rows=256)
        {"overhead": overhead, "stopping": stopping}[args.measure](args)


if __name__ == "__main__":
    main()
