"""Readers of a run for tests: its epochs in MLflow, its weights, its checkpoints."""

import os
from pathlib import Path

from cluster import tracking
from jobs.run_store import find_run


def logged_epochs(run_id: str, metric: str = "valid_psnr") -> list[int]:
    """Return the epochs of a metric's points in MLflow."""
    return [point.step for point in tracking.client().get_metric_history(run_id, metric)]


def model_bytes(run: str) -> bytes:
    """Return the weights file of a finished run."""
    fs, root = find_run(run).folder
    with fs.open_input_file(f"{root}/model/model.safetensors") as file:
        return file.read()


def has_checkpoint(run: str, step: int) -> bool:
    """Return if the run has a checkpoint of `step` or a later one: a checkpoint may be skipped for the next."""
    paths = Path(os.environ["ZPOINT_HOME"], "runs", run, "checkpoints").glob("step-*/progress.json")
    return any(int(path.parent.name.split("-")[1]) >= step for path in paths)
