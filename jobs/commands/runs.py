"""What `zpoint runs` lists: the trainings that MLflow knows, newest first."""

from datetime import datetime
from typing import Any

from cluster import tracking


def list_runs() -> list[dict[str, Any]]:
    """One dict a run: name, status, start, epochs done, last figures and the version it is registered as."""
    versions: dict[str, str] = {}
    for version in tracking.client().search_model_versions(f"name = '{tracking.MODEL_NAME}'"):
        versions[version.run_id] = str(version.version)
    return [_row(run, versions) for run in tracking.find_runs()]


def _row(run: Any, versions: dict[str, str]) -> dict[str, Any]:
    metrics = run.data.metrics
    return {
        "run": run.info.run_name,
        "run_id": run.info.run_id,
        "status": run.info.status.lower(),
        "started": datetime.fromtimestamp(run.info.start_time / 1000).isoformat(" ", "minutes"),
        "epochs": run.data.tags.get("zpoint.epoch", ""),
        "version": versions.get(run.info.run_id, ""),
        **{key: metrics[key] for key in ("valid_psnr", "hog_frechet_normal", "images_per_second") if key in metrics},
    }
