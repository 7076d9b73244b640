"""The study job: which z-points of finished runs decode to meaningful images, as one HTML page with PNGs and JSON."""

import hashlib
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.data.dataset import Dataset
from aecore.data.io import write_atomic
from cluster import tracking
from cluster.settings import settings
from cluster.storage import check_uri
from jobs.study.measurements import JUDGED, LIMIT, Finished, Measured, common_dataset, find_finished, options_for

if TYPE_CHECKING:
    from aecore.metrics.inception import Inception

Progress = Callable[[int, int, str], None]


def study(
    names: list[str], out: str | None = None, *, limit: int = LIMIT, judged: int = JUDGED,
    inception: str | None = None, fresh: bool = False, progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:  # fmt: skip
    """Study the finished runs `names`, all trained on one dataset; gives the report's path, findings and seconds.

    What was measured is kept with each run and not measured again unless `fresh`. `limit` training images are encoded
    at most, `judged` pictures are judged at each point, or as many as there are unseen images, those of samplers also
    by the Inception network whose weights the file `inception` holds. The report goes to the folder `out`, by default
    one in ZPOINT_HOME/studies, and to the runs in MLflow. Raises ValueError for an unknown or unfinished run, for runs
    on different datasets, for an `out` that is no folder, and for an `inception` that is another file.
    """
    started, names = time.monotonic(), list(dict.fromkeys(names))
    folder = Path(out).absolute() if out else settings().home / "studies" / _title(names)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {out} is a file: it takes a folder")
    check_uri(settings().store)
    runs = [find_finished(name) for name in names]
    data, network = common_dataset(runs, limit), _network(inception)
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is known before the work
    figures, arrays = _measure(runs, data, options_for(data.manifest, limit, judged), network, fresh, progress)

    from jobs.study.report import PAGE, make_report

    files, findings = make_report(figures, arrays)
    for name, content in files.items():  # the page comes last: what belongs to it is there by then
        write_atomic(pafs.LocalFileSystem(), str(folder / name), content)
    for run in runs:
        if run.record.run_id:
            tracking.best_effort("take the study", partial(tracking.log_files, run.record.run_id, files, "study"))
    return {
        "report": str(folder / PAGE), "runs": [run.record.name for run in runs], "findings": findings,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def _title(names: list[str]) -> str:
    title = "+".join(names)
    return title if len(title) <= 100 else hashlib.sha256(title.encode()).hexdigest()[:16]


def _network(weights: str | None) -> "Inception | None":
    if weights is None:
        return None
    from aecore.metrics.inception import Inception

    return Inception(Path(weights))


def _measure(
    runs: list[Finished], data: Dataset, options: dict[str, int],
    network: "Inception | None", fresh: bool, progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """The figures of all runs, and each one's arrays by part and name."""
    from aecore.analysis import PARTS
    from jobs.study.images import held_out_split, read_images

    images = cache(partial(read_images, data, options["limit"]))
    scored = cache(lambda: network.against(images().scores.train)) if network else None
    steps = len(PARTS) + bool(network)
    figures, arrays, total = [], [], len(runs) * steps
    for run in runs:
        measured, numbers, kept = Measured(run, images, options, fresh=fresh), run.about, {}
        for name in PARTS:
            progress(len(figures) * steps + len(kept), total, f"{run.record.name}: {name}")
            part = measured.part(name)
            numbers[name], kept[name] = part.figures, part.arrays
        if network and scored:
            progress(len(figures) * steps + len(kept), total, f"{run.record.name}: inception")
            _add(measured.inception(network.digest, scored).figures, numbers)
        figures.append(numbers)
        arrays.append(kept)
    progress(total, total, "")
    manifest = data.manifest
    about = {"name": manifest.dataset, "uri": runs[0].recipe.data.uri, "size": manifest.size, "digest": manifest.digest}
    counts = {split: manifest.count(split) for split in manifest.splits}
    return {
        **options,
        "dataset": about | {"images": counts, "held_out": held_out_split(manifest)},
        "runs": figures,
    }, arrays


def _add(scores: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Put the Inception network's scores beside the others of real images and samplers."""
    numbers["real"] |= scores["real"]
    for name, one in scores["samplers"].items():
        numbers["samplers"][name] |= one
