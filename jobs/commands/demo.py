"""The demo: the whole way on generated faces, from no image to a served decoder, on one machine.

Every step is the job that a user would start; each has a fixed name, so a demo that was stopped goes on.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.config import Recipe, load_recipe
from aecore.data.io import write_atomic, write_json
from cluster.progress import Bar
from cluster.ray_connection import connect
from cluster.settings import settings
from jobs.ingest.job import ingest
from jobs.promote import promote
from jobs.recipes import RECIPES
from jobs.run_store import find_run
from jobs.train.job import train
from jobs.train.placement import worker_capacity, worker_resources
from jobs.tune.job import tune
from jobs.tune.selection import RULE, ScoredModel, choose_best

SLACK = 3.0  # dB, see jobs.tune.selection
SHOWN = 12
# images, epochs, search: trials and epochs of each
SIZES = {False: (4_000, 10, 4, 3), True: (2_000, 5, 2, 1)}


def demo(*, quick: bool = False) -> dict[str, Any]:
    """Ingest, train, tune, promote, serve and decode; leaves faces.png and summary.md in ZPOINT_HOME/demo.

    Gives the paths, the champion, seconds of each step and the figures of the two trained models.
    """
    count, epochs, trials, trial_epochs = SIZES[quick]
    folder = settings().home / ("demo-quick" if quick else "demo")
    dataset = str(folder / "faces")
    seconds: dict[str, float] = {}

    def step(title: str, call: Callable[[], Any]) -> Any:
        print(f"zpoint demo {len(seconds) + 1}/6: {title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = call()
        seconds[title] = round(time.monotonic() - started, 1)
        return result

    def recipe(name: str, *overrides: str) -> Recipe:
        ours = [f"data.uri={dataset}", f"optim.epochs={epochs}", f"scale.workers={workers}"]
        return load_recipe(RECIPES / f"{name}.yaml", [*ours, *overrides])

    connect()
    workers = min(2, worker_capacity(worker_resources(2)))  # one where there is but one GPU, or one core
    data = step(f"draw {count:,} faces and ingest them", lambda: _ingest(count, dataset))
    runs = {
        name: step(
            f"train {name}, {epochs} epochs, DDP workers: {workers}", lambda name=name: train(recipe(name), name)
        )
        for name in ("faces-vae", "faces-near-ae")
    }
    search = [
        f"search.trials={trials}", f"optim.epochs={trial_epochs}", "scale.workers=1", "search.z_dim=[16,32,64]",
        "search.kl_factor=[0.001,10]",
    ]  # fmt: skip
    campaign = step(
        f"search z_dim and kl_factor, {trials} trials of {trial_epochs} epochs",
        lambda: tune(recipe("faces-vae", *search), "faces-vae"),
    )
    best = _best(runs, campaign)
    champion = step(f"promote {best}", lambda: promote(best))
    pictures = step("serve it and decode z-points", lambda: _query(champion, runs, dataset))

    write_atomic(pafs.LocalFileSystem(), str(folder / "faces.png"), pictures)
    result = {
        "picture": str(folder / "faces.png"), "summary": str(folder / "summary.md"), "dataset": data["digest"],
        "champion": champion, "campaign": campaign["campaign"], "seconds": seconds,
        "runs": {name: run["metrics"] | {"run": run["run"]} for name, run in runs.items()},
    }  # fmt: skip
    text = _summary(result, campaign, dataset)
    write_atomic(pafs.LocalFileSystem(), result["summary"], text.encode())
    write_json(pafs.LocalFileSystem(), str(folder / "result.json"), result)
    return result | {"text": text}


def _ingest(count: int, to: str) -> dict[str, Any]:
    with closing(Bar("ingest", "images")) as bar:
        return ingest("generated", None, to, limit=count, shard_rows=256, progress=bar.update)


def _best(runs: dict[str, Any], campaign: dict[str, Any]) -> str:
    metrics = {run["run"]: run["metrics"] for run in runs.values()}
    scored = [ScoredModel(name, m["valid_psnr"], m["hog_frechet_normal"]) for name, m in metrics.items()]
    scored += [ScoredModel(t["run"], t["valid_psnr"], t["hog_frechet_normal"]) for t in campaign["trials"]]
    return choose_best(scored, SLACK).name


def _query(champion: dict[str, Any], runs: dict[str, Any], dataset: str) -> bytes:
    """Serve the champion, decode z-points there, and set them beside what the other models make of theirs."""
    from aecore.image_grid import titled_sheet, to_png
    from serving.client import Client
    from serving.runtime.deployment import free_port, start_endpoint, stop_endpoint

    served = start_endpoint("champion", port=free_port(), compiled=False)
    try:
        with Client(served.url, settings().token) as endpoint:
            z_dim = endpoint.model()["z_dim"]
            z = np.random.default_rng(0).standard_normal((2 * SHOWN, z_dim)).astype(np.float32)
            decoded = endpoint.decode(z)
            fitted = endpoint.sample("gaussian", SHOWN, seed=0)
    finally:
        stop_endpoint()
    parts = [
        (f"served: {champion['run']}, z-points from N(0, 1)", [decoded[:SHOWN], decoded[SHOWN:]]),
        ("served: z-points from the Gaussian fitted to the training images' z-points", [fitted]),
    ]
    for name, run in runs.items():
        parts += _shown(name, run["run"], dataset)
    return to_png(titled_sheet(parts))


def _shown(name: str, run: str, dataset: str) -> list[tuple[str, list[np.ndarray]]]:
    import torch

    from aecore.data.node_cache import open_cache
    from aecore.latent.samplers import sample
    from aecore.model.autoencoder import to_float
    from aecore.training.checkpoint import load_model
    from jobs.dataset import open_dataset

    images = open_cache(settings().cache, open_dataset(dataset), "test")[:SHOWN]
    fs, root = find_run(run).folder
    saved = load_model(fs, f"{root}/model")
    seen = saved.model.decode(saved.model.encode(to_float(torch.from_numpy(np.array(images)))).mean).numpy()
    drawn = saved.model.decode(sample("normal", SHOWN, saved.latents, seed=0)).numpy()
    return [(f"{name}: test images, reconstructions, decoded N(0, 1)", [images, seen, drawn])]


def _summary(result: dict[str, Any], campaign: dict[str, Any], dataset: str) -> str:
    rows = [
        f"| {name} | {m['valid_psnr']:.1f} | {m['hog_frechet_normal']:.2f} | {m['hog_frechet_gaussian']:.2f} "
        f"| {m['valid_kl']:.0f} | {m['images_per_second']:.0f} |"
        for name, m in result["runs"].items()
    ]
    trials = [
        f"| {t['z_dim']} | {t['kl_factor']:.3g} | {t['valid_psnr']:.1f} | {t['hog_frechet_normal']:.2f} |"
        for t in campaign["trials"]
    ]
    steps = [f"- {title}: {seconds:.0f} s" for title, seconds in result["seconds"].items()]
    champion = result["champion"]
    return f"""# What the demo did

{chr(10).join(steps)}

# What was measured

| model | PSNR (dB) | distance of decoded N(0, 1) | of the fitted Gaussian | KL (nats) | images/s |
|---|---|---|---|---|---|
{chr(10).join(rows)}

The distance is the Frechet distance of decoded z-points to training images in HOG features: lower is better.

The search:

| z_dim | kl_factor | PSNR (dB) | distance of decoded N(0, 1) |
|---|---|---|---|
{chr(10).join(trials)}

Promoted: {champion["run"]} as version {champion["version"]}, by the rule: {RULE.format(slack=SLACK)}.

Pictures: {result["picture"]}

# What to do next

    zpoint serve                                   # http://127.0.0.1:8000/docs
    zpoint sample --sampler normal --n 64          # in a second terminal: writes decoded.png
    zpoint train faces-vae data.uri={Path(dataset)} optim.epochs=20
    zpoint ingest celeba --source FOLDER --to celeba && zpoint train celeba-vae data.uri=celeba
    zpoint runs
"""
