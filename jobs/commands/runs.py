"""`zpoint runs`: the trainings in MLflow, newest first."""

from datetime import datetime
from typing import Any

from cluster import tracking
from jobs.run_store import is_trained_now
from jobs.tune.campaign import is_run_now

METRICS = ("valid_psnr", "hog_frechet_normal", "images_per_second")


def list_runs() -> list[dict[str, Any]]:
    """Return one dict a run: name, id, status, start, finished epochs, registered version and its last METRICS."""
    versions: dict[str, str] = {}
    for version in tracking.client().search_model_versions(f"name = '{tracking.MODEL_NAME}'"):
        versions[version.run_id] = max(versions.get(version.run_id, "0"), str(version.version), key=int)
    return [_describe(run, versions.get(run.info.run_id, "")) for run in tracking.find_runs()]


def _describe(run: Any, version: str) -> dict[str, Any]:
    metrics = run.data.metrics
    return {
        "run": run.info.run_name,
        "run_id": run.info.run_id,
        "status": _status(run),
        "started": datetime.fromtimestamp(run.info.start_time / 1000).isoformat(" ", "minutes"),
        "epochs": run.data.tags.get("zpoint.epoch", ""),
        "version": version,
        **{key: metrics[key] for key in METRICS if key in metrics},
    }


def _status(run: Any) -> str:
    """Return MLflow's status, of which a run whose driver has died is killed: nothing was left to tell MLflow."""
    name, uri, status = run.data.tags.get("zpoint.run"), run.data.tags.get("zpoint.uri"), run.info.status.lower()
    if status != "running" or not name:
        return status
    runs_now = is_trained_now(uri) if uri else is_run_now(name)
    return status if runs_now else "killed"
