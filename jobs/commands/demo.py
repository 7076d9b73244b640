"""The demo: ingest, train, tune, promote, serve and query on generated faces, on one machine.

Each step is the job that its command runs. Dataset and runs have fixed names, so an interrupted demo resumes.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs as pafs

from aecore.config import Recipe, Scale, load_recipe
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
from jobs.tune.selection import choose_best, describe_rule, score

SLACK = 3.0  # dB of validation PSNR, see jobs.tune.selection
NUM_COLUMNS = 12  # images in a row of faces.png
IMAGE_SIZE = 64  # pixels a side: a step takes 0.44 of the FLOP of the default, 96
RECIPE_OVERRIDES = {"faces-vae": ["loss.kl_factor=2"], "faces-near-ae": []}  # 4 is for 96 pixels: their loss is a sum


class DemoSize(NamedTuple):
    """The amount of work of a demo."""

    images: int
    epochs: int
    trials: int
    trial_epochs: int


FULL, QUICK = DemoSize(4_000, 10, 4, 3), DemoSize(2_000, 5, 2, 1)
SEARCH_SPACE = ["search.space.model.z_dim=[16,32,64]", "search.space.loss.kl_factor=log(0.01,10)"]


def demo(*, quick: bool = False) -> dict[str, Any]:
    """Run every step from ingest to a decoded z-point; write faces.png and summary.md to ZPOINT_HOME/demo.

    Returns the paths, the champion, the seconds of each step, and the metrics of the two trained models.
    """
    size = QUICK if quick else FULL
    folder = settings().home / ("demo-quick" if quick else "demo")
    dataset = str(folder / f"faces-{IMAGE_SIZE}")
    seconds: dict[str, float] = {}

    def step(title: str, run: Callable[..., Any], *args: Any) -> Any:
        print(f"zpoint demo {len(seconds) + 1}/6: {title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = run(*args)
        seconds[title] = round(time.monotonic() - started, 1)
        return result

    connect()
    num_workers = min(2, worker_capacity(worker_resources(Scale(workers=2))))  # 1 on a machine with one GPU or one core
    common = [f"data.uri={dataset}", f"optim.epochs={size.epochs}", f"scale.workers={num_workers}"]

    def load(name: str, *overrides: str) -> Recipe:
        return load_recipe(RECIPES / f"{name}.yaml", [*common, *RECIPE_OVERRIDES[name], *overrides])

    ingest_result = step(f"ingest {size.images:,} generated faces", _ingest, size.images, dataset)
    runs = {}
    for name in RECIPE_OVERRIDES:
        title = f"train {name} for {size.epochs} epochs, DDP workers: {num_workers}"
        runs[name] = step(title, train, load(name), name)
    search = [
        f"search.trials={size.trials}",
        f"optim.epochs={size.trial_epochs}",
        "scale.workers=1",
        "search.sampler=normal",
        *SEARCH_SPACE,
    ]
    campaign = step(
        f"search z_dim and kl_factor in {size.trials} trials of {size.trial_epochs} epochs",
        tune,
        load("faces-vae", *search),
        "faces-vae",
    )
    best = _choose_best(runs, campaign)
    champion = step(f"promote {best}", promote, best)
    picture = step("serve the champion and decode z-points", _query, champion, runs, dataset)

    write_atomic(pafs.LocalFileSystem(), str(folder / "faces.png"), picture)
    result = {
        "picture": str(folder / "faces.png"), "summary": str(folder / "summary.md"), "dataset": ingest_result["digest"],
        "champion": champion, "campaign": campaign["campaign"], "seconds": seconds,
        "runs": {name: run["metrics"] | {"run": run["run"]} for name, run in runs.items()},
    }  # fmt: skip
    text = _summarize(result, campaign, dataset)
    write_atomic(pafs.LocalFileSystem(), result["summary"], text.encode())
    write_json(pafs.LocalFileSystem(), str(folder / "result.json"), result)
    return result | {"text": text}


def _ingest(num_images: int, uri: str) -> dict[str, Any]:
    with closing(Bar("ingest", "images")) as bar:
        return ingest("generated", None, uri, size=IMAGE_SIZE, limit=num_images, shard_rows=256, progress=bar.update)


def _choose_best(runs: dict[str, Any], campaign: dict[str, Any]) -> str:
    """Return the name of the best run among the two trainings and the finished trials."""
    candidates = {run["run"]: run["metrics"] for run in runs.values()}
    candidates |= {trial["run"]: trial["judged"][-1] for trial in campaign["trials"] if trial["state"] == "finished"}
    return choose_best([score(run, metrics, "normal") for run, metrics in candidates.items()], SLACK).name


def _query(champion: dict[str, Any], runs: dict[str, Any], dataset: str) -> bytes:
    """Serve the champion, decode z-points there, and return a PNG of them above images of the trained models."""
    from aecore.image_grid import titled_sheet, to_png
    from serving.client import Client
    from serving.runtime.deployment import free_port, start_endpoint, stop_endpoint

    served = start_endpoint(port=free_port())
    try:
        with Client(served.url, settings().token) as endpoint:
            z_dim = endpoint.model()["z_dim"]
            z = np.random.default_rng(0).standard_normal((2 * NUM_COLUMNS, z_dim)).astype(np.float32)
            normal = endpoint.decode(z)
            gaussian = endpoint.sample("gaussian", NUM_COLUMNS, seed=0)
    finally:
        stop_endpoint()
    sections = [
        (f"served: {champion['run']}, z-points from N(0, 1)", [normal[:NUM_COLUMNS], normal[NUM_COLUMNS:]]),
        ("served: z-points from the Gaussian fitted to the training images' z-points", [gaussian]),
    ]
    for name, run in runs.items():
        title = f"{name}: test images, reconstructions, decoded N(0, 1)"
        sections.append((title, _decode_in_process(run["run"], dataset)))
    return to_png(titled_sheet(sections))


def _decode_in_process(run: str, dataset: str) -> list[np.ndarray]:
    """Return test images, their reconstructions and decoded N(0, 1) z-points, uint8 (NUM_COLUMNS, H, W, 3) each."""
    import torch

    from aecore.data.node_cache import open_cache
    from aecore.latent.samplers import sample
    from aecore.model.autoencoder import to_float
    from jobs.dataset import open_dataset

    images = open_cache(settings().cache, open_dataset(dataset), "test")[:NUM_COLUMNS]
    saved = find_run(run).load_model()
    z = saved.model.encode(to_float(torch.from_numpy(np.array(images)))).mean
    reconstructions = saved.model.decode(z).numpy()
    samples = saved.model.decode(sample("normal", NUM_COLUMNS, saved.latents, seed=0)).numpy()
    return [images, reconstructions, samples]


def _summarize(result: dict[str, Any], campaign: dict[str, Any], dataset: str) -> str:
    """Return the text of summary.md."""
    models = [
        f"| {name} | {m['valid_psnr']:.1f} | {m['hog_frechet_normal']:.2f} | {m['hog_frechet_gaussian']:.2f} "
        f"| {m['valid_kl']:.0f} | {m['images_per_second']:.0f} |"
        for name, m in result["runs"].items()
    ]
    trials = [
        f"| {t['point']['model.z_dim']} | {t['point']['loss.kl_factor']:.3g} | {t['state']} "
        f"| {t['metrics']['valid_psnr']:.1f} | {t['judged'][-1]['hog_frechet_normal']:.2f} "
        f"| {t['judged'][-1]['hog_frechet_gaussian']:.2f} |"
        for t in campaign["trials"]
        if t["judged"]
    ]
    steps = [f"- {title}: {seconds:.0f} s" for title, seconds in result["seconds"].items()]
    champion = result["champion"]
    return f"""# Steps

{chr(10).join(steps)}

# Metrics

| model | PSNR (dB) | distance of decoded N(0, 1) | of the fitted Gaussian | KL (nats) | images/s |
|---|---|---|---|---|---|
{chr(10).join(models)}

The distance is the Frechet distance of decoded z-points to training images in HOG features: lower is better.

The trials of the search:

| z_dim | kl_factor | state | PSNR (dB) | distance of decoded N(0, 1) | of the fitted Gaussian |
|---|---|---|---|---|---|
{chr(10).join(trials)}

Promoted: {champion["run"]} as version {champion["version"]}, by the rule: {describe_rule(SLACK, "normal")}.

Images: {result["picture"]}

# Next commands

    zpoint serve                                   # http://127.0.0.1:8000/docs
    zpoint sample --sampler normal --n 64          # in a second terminal: writes decoded.png
    zpoint train faces-vae data.uri={Path(dataset)} {RECIPE_OVERRIDES["faces-vae"][0]} optim.epochs=20
    zpoint ingest celeba --source FOLDER --to celeba && zpoint train celeba-vae data.uri=celeba
    zpoint runs
"""
