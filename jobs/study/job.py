"""The study job: which z-points of finished runs decode to meaningful images, as one HTML page with PNGs and JSON."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.config import Recipe, check_recipe
from aecore.files import read_json, write_whole
from aecore.shards import Manifest
from cluster import tracking
from cluster.settings import settings
from cluster.storage import check_uri
from jobs.record import Record, find_record
from jobs.train import open_dataset

if TYPE_CHECKING:
    from aecore.study import Subject
    from jobs.study.data import Images

LIMIT, JUDGED = 6_000, 256  # training images encoded at most; pictures judged at each point
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Studied:
    """A finished run: where it lies, its recipe and the digest of the dataset that it was trained on."""

    record: Record
    recipe: Recipe
    dataset: str


def study(
    names: list[str], out: str | None = None, *, limit: int = LIMIT, judged: int = JUDGED, fresh: bool = False,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:  # fmt: skip
    """Study the finished runs `names`, all trained on one dataset; gives the report's path, findings and seconds.

    What was measured is kept with each run and not measured again unless `fresh`. `limit` training images are encoded
    at most, `judged` pictures are judged at each point. The report goes to the folder `out`, by default one in
    ZPOINT_HOME/studies, and to the runs in MLflow. Raises ValueError for an unknown or unfinished run, for runs on
    different datasets, and for an `out` that is no folder.
    """
    started, names = time.monotonic(), list(dict.fromkeys(names))
    folder = Path(out).absolute() if out else settings().home / "studies" / _title(names)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {out} is a file: it takes a folder")
    check_uri(settings().store)
    runs = [_find(name) for name in names]
    data = _common_dataset(runs, limit)
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is known before the work
    figures, arrays = _measure(runs, data, {"limit": limit, "judged": judged}, fresh, progress)

    from jobs.study.report import PAGE, make_report

    files, findings = make_report(figures, arrays)
    for name, content in files.items():  # the page comes last: what belongs to it is there by then
        write_whole(pafs.LocalFileSystem(), str(folder / name), content)
    for run in runs:
        if run.record.run_id:
            tracking.attempt("take the study", partial(tracking.log_files, run.record.run_id, files, "study"))
    return {
        "report": str(folder / PAGE), "runs": [run.record.name for run in runs], "findings": findings,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def _title(names: list[str]) -> str:
    title = "+".join(names)
    return title if len(title) <= 100 else hashlib.sha256(title.encode()).hexdigest()[:16]


def _find(name: str) -> Studied:
    record = find_record(name)
    if not record.finished():
        raise ValueError(f"run '{name}' has not finished: start its command again, then study it")
    fs, root = record.place
    known = read_json(fs, f"{root}/run.json")
    return Studied(record, check_recipe(known["recipe"]), known["dataset"])


def _common_dataset(runs: list[Studied], limit: int) -> tuple[pafs.FileSystem, str, Manifest]:
    from jobs.study.data import check_enough

    first = runs[0]
    for run in runs:
        if run.dataset != first.dataset:
            raise ValueError(
                f"a study compares runs on one dataset: '{first.record.name}' was trained on {first.recipe.data.uri}, "
                f"'{run.record.name}' on {run.recipe.data.uri}"
            )
    fs, root, manifest = open_dataset(first.recipe.data.uri)
    if manifest.digest != first.dataset:
        raise ValueError(f"{first.recipe.data.uri} no longer holds what '{first.record.name}' was trained on")
    check_enough(manifest, limit)
    return fs, root, manifest


def _measure(
    runs: list[Studied], data: tuple[pafs.FileSystem, str, Manifest], options: dict[str, int], fresh: bool,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """The figures of all runs, and each one's arrays by part and name: measured, or as an earlier study kept them."""
    from aecore.study import PARTS
    from jobs.study.data import held_out_split, read_images
    from jobs.study.parts import load_part, part_path, save_part

    images = cache(partial(read_images, *data, options["limit"]))
    figures, arrays, total = [], [], len(runs) * len(PARTS)
    for run in runs:
        subject = cache(partial(_subject, run, images, options["judged"]))
        fs, root = run.record.place
        numbers, kept = _about(run), {}
        for name, measure in PARTS.items():
            progress(len(figures) * len(PARTS) + len(kept), total, f"{run.record.name}: {name}")
            path = part_path(root, name, options)
            part = None if fresh else load_part(fs, path)
            if part is None:
                part = measure(subject())
                save_part(fs, path, part)
            numbers[name], kept[name] = part.figures, part.arrays
        figures.append(numbers)
        arrays.append(kept)
    progress(total, total, "")
    manifest = data[2]
    about = {"name": manifest.dataset, "uri": runs[0].recipe.data.uri, "size": manifest.size, "digest": manifest.digest}
    counts = {split: manifest.count(split) for split in manifest.splits}
    return {
        **options,
        "dataset": about | {"images": counts, "held_out": held_out_split(manifest)},
        "runs": figures,
    }, arrays


def _about(run: Studied) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "run": run.record.name, "z_dim": recipe.model.z_dim, "kl_factor": recipe.loss.kl_factor,
        "task": recipe.task.kind, "epochs": recipe.optim.epochs,
    }  # fmt: skip


def _subject(run: Studied, images: Callable[[], "Images"], judged: int) -> "Subject":
    import torch

    from aecore.checkpoint import load_model
    from aecore.study import Subject

    fs, root = run.record.place
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = images()
    return Subject(load_model(fs, f"{root}/model", device), known.train, known.test, known.scores, judged, device)
