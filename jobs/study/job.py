"""Run the study job: which z-points of finished runs decode to meaningful images, as an HTML page, PNGs and JSON."""

import hashlib
import time
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import tracking
from cluster.progress import ProgressCallback, no_progress
from cluster.settings import settings
from cluster.storage import check_uri
from jobs.report_folder import open_report_folder
from jobs.study.measurements import (
    DEFAULT_LIMIT,
    DEFAULT_NUM_SAMPLES,
    FinishedRun,
    MeasuredRun,
    StudyDataset,
    find_finished_run,
    open_study_dataset,
)
from jobs.tune.lookup import expand_campaigns

if TYPE_CHECKING:
    from aecore.metrics.inception import Inception


def study(
    run_names: list[str], out: str | None = None, *, limit: int = DEFAULT_LIMIT,
    num_samples: int = DEFAULT_NUM_SAMPLES, inception: str | None = None, fresh: bool = False,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:  # fmt: skip
    """Study finished runs that were trained on one dataset. Return the report's path, the findings and the seconds.

    A campaign stands for the runs of its Pareto front. At most `limit` training images are encoded. `num_samples`
    images, or as many as there are held-out images, are scored for each sampler and sweep value; with `inception`, a
    file of weights, the samplers' images also by that network. Measurements are stored with each run and reused unless
    `fresh`. The report is written to the folder `out`, a path or an s3:// URI, by default one in ZPOINT_HOME/studies,
    for a submitted job in ZPOINT_STORE/studies, and logged to the runs in MLflow.

    Raises ValueError for an unknown or unfinished run, for runs on different datasets, if `inception` is not the
    expected file of weights, and as `open_report_folder`.
    """
    start = time.monotonic()
    names = list(dict.fromkeys(run_names))
    check_uri(settings().store)
    runs = [find_finished_run(name) for name in dict.fromkeys(expand_campaigns(names))]
    study_dataset = open_study_dataset(runs, limit, num_samples)
    network = _load_inception(inception)
    folder = open_report_folder(out, f"studies/{_folder_name(names)}")
    metrics, arrays = _measure(runs, study_dataset, network, fresh, progress)

    from jobs.study.report import PAGE_FILE, make_report

    files, findings = make_report(metrics, arrays)
    folder.write(files)  # the page is the last: a page without its files is never seen
    for run in runs:
        if run.store.run_id:
            tracking.best_effort("log the study", partial(tracking.log_files, run.store.run_id, files, "study"))
    return {
        "report": f"{folder.uri}/{PAGE_FILE}", "runs": [run.store.name for run in runs], "findings": findings,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def _folder_name(run_names: list[str]) -> str:
    name = "+".join(run_names)
    return name if len(name) <= 100 else hashlib.sha256(name.encode()).hexdigest()[:16]


def _load_inception(weights: str | None) -> "Inception | None":
    if weights is None:
        return None
    from aecore.metrics.inception import Inception

    return Inception(Path(weights))


def _measure(
    runs: list[FinishedRun], study_dataset: StudyDataset, network: "Inception | None", fresh: bool,
    progress: ProgressCallback,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Return the metrics of the study, and the arrays of each run by measurement and name."""
    from aecore.analysis import MEASUREMENTS
    from jobs.study.images import held_out_split
    from jobs.study.metrics import INTERPOLATIONS_KEY

    make_scorer = cache(lambda: network.metric_fn(study_dataset.images.metric_suite.train)) if network else None
    metrics_by_run, arrays_by_run = [], []
    done, total = 0, len(runs) * (len(MEASUREMENTS) + bool(network))
    for run in runs:
        measured_run = MeasuredRun(run, study_dataset, fresh=fresh)
        run_metrics, run_arrays = run.summary, {}
        for name in MEASUREMENTS:
            progress(done, total, f"{run.store.name}: {'interpolations' if name == INTERPOLATIONS_KEY else name}")
            measurement = measured_run.measure(name)
            run_metrics[name], run_arrays[name] = measurement.metrics, measurement.arrays
            done += 1
        if network and make_scorer:
            progress(done, total, f"{run.store.name}: inception")
            _merge_inception_scores(measured_run.measure_inception(network.digest, make_scorer).metrics, run_metrics)
            done += 1
        metrics_by_run.append(run_metrics)
        arrays_by_run.append(run_arrays)
    progress(total, total, "")
    manifest = study_dataset.dataset.manifest
    dataset_summary = {
        "name": manifest.dataset, "uri": runs[0].recipe.data.uri, "size": manifest.size, "digest": manifest.digest,
        "images": {split: manifest.count(split) for split in manifest.splits}, "held_out": held_out_split(manifest),
    }  # fmt: skip
    return {**study_dataset.options, "dataset": dataset_summary, "runs": metrics_by_run}, arrays_by_run


def _merge_inception_scores(scores: dict[str, Any], run_metrics: dict[str, Any]) -> None:
    """Add the Inception network's scores to those of the real images and of the samplers."""
    run_metrics["real"] |= scores["real"]
    for sampler, sampler_scores in scores["samplers"].items():
        run_metrics["samplers"][sampler] |= sampler_scores
