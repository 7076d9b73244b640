"""Measure a campaign: `python tests/benchmarks/tune.py overhead|stopping`, on an idle machine, on CPUs or GPUs.

overhead: trials of generated faces. Printed: the share of the cores' (or GPUs') time, from the first trial's start to
the last one's end, in which trials run, and in which they train; the seconds of a trial beside its training steps; and
those of its start: until its first epoch's metrics are written, without the epoch's steps. With `--per-gpu 4` four
trials share a GPU.

stopping: for each of `--seeds` a campaign without early stopping, and a replay of its trials with it: the scheduler
decides on the stored metrics of their epochs, so the points are the same and one campaign gives both results. Printed:
the best run's point, PSNR and distance of both, and the share of the epochs that early stopping trains.
"""

import argparse
import heapq
import os
import tempfile
from typing import Any

import pytest

from aecore.config import Recipe, load_recipe
from jobs.dataset import open_dataset
from jobs.recipes import RECIPES
from jobs.run_store import find_run
from jobs.tune.campaign import Campaign, from_json
from jobs.tune.runner import CampaignRun
from jobs.tune.table import describe_best


def overhead(args: argparse.Namespace) -> None:
    """Run one campaign and print how busy it kept the devices."""
    campaign = run(args, [f"search.trials={args.trials}", "search.stop=none", f"search.per_gpu={args.per_gpu}"])
    trials = campaign["trials"]
    start = min(trial["spans"][0][0] for trial in trials)
    wall = max(trial["spans"][-1][1] for trial in trials) - start
    running = {t["run"]: sum(span.seconds for span in t["spans"]) for t in trials}
    training = {t["run"]: sum(e["epoch_seconds"] for e in find_run(t["run"]).epochs().values()) for t in trials}
    devices = args.devices or os.cpu_count()
    share = {name: sum(seconds[t["run"]] * t["spans"][-1].devices for t in trials) / (wall * devices)
             for name, seconds in (("running", running), ("training", training))}  # fmt: skip
    other = sorted(running[run] - training[run] for run in running)
    starts = [start_seconds(t["run"], t["spans"][0][0]) for t in sorted(trials, key=lambda t: t["spans"][0][0])]
    print(f"{len(trials)} trials in {wall:.1f} s on {devices} {campaign['unit']}s")
    print(f"running {share['running']:.3f}, training {share['training']:.3f} of the devices' time")
    print(f"seconds of a trial beside its training steps: {', '.join(f'{seconds:.1f}' for seconds in other)}")
    print(f"seconds of a trial's start, in the order of starts: {', '.join(f'{seconds:.2f}' for seconds in starts)}")


def start_seconds(run: str, began: float) -> float:
    """Return the seconds from `began` to the run's first written metrics, without the steps of that epoch."""
    store = find_run(run)
    fs, folder = store.folder
    written = fs.get_file_info(f"{folder}/epochs/epoch-001.json").mtime_ns / 1e9
    return written - began - store.epochs()[1]["epoch_seconds"]


def stopping(args: argparse.Namespace) -> None:
    """Run each seed's campaign without early stopping, replay it with, and compare verdicts and epochs."""
    slots = args.devices or os.cpu_count() or 1
    for seed in range(args.seeds):
        os.environ["ZPOINT_HOME"] = f"{args.home}/seed-{seed}"
        overrides = [f"search.trials={args.trials}", f"optim.seed={seed}", "search.stop=none"]
        unstopped = from_json(run(args, overrides))
        with tempfile.TemporaryDirectory() as folder:
            stopped = replay(unstopped, load(args, overrides), slots * args.per_gpu, folder)
        epochs = [sum(trial.epoch for trial in campaign.trials) for campaign in (unstopped, stopped)]
        print(f"seed {seed}: {epochs[1]} of {epochs[0]} epochs ({epochs[1] / epochs[0]:.2f}), verdict "
              f"{'the same' if stopped.best == unstopped.best else 'another'}")  # fmt: skip
        for name, campaign in (("without", unstopped), ("with", stopped)):
            print(f"    {name:<7}  {describe_best(campaign)}", flush=True)


def replay(unstopped: Campaign, recipe: Recipe, slots: int, folder: str) -> Campaign:
    """Return the campaign that early stopping makes of the points of `unstopped`, in their order, `slots` at a time.

    The decisions are those of `CampaignRun` on the epochs that the runs have stored, each of which takes as long as it
    took: nothing is trained. `folder` becomes ZPOINT_HOME meanwhile, so that no trial is finished already.
    """
    manifest = open_dataset(recipe.data.uri).manifest
    stored = {trial.run: find_run(trial.run).epochs() for trial in unstopped.trials}
    points = tuple(trial.point for trial in unstopped.trials)
    search = recipe.search.model_copy(update={"stop": "dominated", "first": points, "trials": len(points)})
    recipe = recipe.model_copy(update={"search": search})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZPOINT_HOME", folder)
        content = recipe.model_dump(mode="json")
        run = CampaignRun(Campaign("replay", "", "", unstopped.stem, content), recipe, manifest)
        run.begin()
        ends: list[tuple[float, str]] = []  # of the running epochs: second and run
        now = 0.0
        while True:
            while len(ends) < slots and (trial := run.next_trial()) is not None:
                run.running[trial.run] = trial
                run.start(trial.run, trial.run, 1.0)
                heapq.heappush(ends, (now + stored[trial.run][1]["epoch_seconds"], trial.run))
            if not ends:
                break
            now, name = heapq.heappop(ends)
            trial = run.running[name]
            epoch = trial.epoch + 1
            if not run.record(name, {"epoch": epoch, **stored[name][epoch]}):
                if epoch < trial.epochs:
                    heapq.heappush(ends, (now + stored[name][epoch + 1]["epoch_seconds"], name))
                    continue
                run.record(name, {"outcome": "finished"})
            run.end(name)
        run.close()
    return run.campaign


def run(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    from jobs.tune.job import tune

    return tune(load(args, overrides), args.recipe)


def load(args: argparse.Namespace, overrides: list[str]) -> Recipe:
    common = [f"data.uri={args.data}", f"optim.epochs={args.epochs}", *args.overrides]
    return load_recipe(RECIPES / f"{args.recipe}.yaml", [*common, *overrides])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a campaign.")
    parser.add_argument("measure", choices=("overhead", "stopping"))
    parser.add_argument("overrides", nargs="*", help="recipe keys, as in optim.batch=64")
    parser.add_argument("--recipe", default="faces-vae")
    parser.add_argument("--data", default="", help="dataset (default: generated faces)")
    parser.add_argument("--images", type=int, default=4_000, help="of the generated faces")
    parser.add_argument("--size", type=int, default=96, help="of the generated faces in pixels")
    parser.add_argument("--home", default="", help="ZPOINT_HOME of the campaigns (default: a temporary folder)")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--per-gpu", type=int, default=1)
    parser.add_argument("--devices", type=int, default=0, help="cores or GPUs of the cluster (default: the CPUs)")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        args.home = args.home or folder
        os.environ.setdefault("ZPOINT_HOME", args.home)
        os.environ.setdefault("ZPOINT_CACHE", f"{args.home}/cache")
        if not args.data:
            from jobs.ingest.job import ingest

            args.data = f"{args.home}/faces"
            ingest("generated", None, args.data, limit=args.images, size=args.size, shard_rows=256)
        {"overhead": overhead, "stopping": stopping}[args.measure](args)


if __name__ == "__main__":
    main()
