"""The promote job: register a finished run's model in MLflow and move an alias to it."""

import re
from typing import Any

from aecore.data.io import read_bytes, read_json
from aecore.errors import one_line
from cluster import tracking
from cluster.settings import settings
from cluster.storage import check_uri
from jobs.run_store import find_run
from jobs.tune.campaign import best_of

ALIAS = re.compile(r"(?i)(?!latest$|v\d+$)[a-z0-9_-]{1,255}")
MODEL_FILES = ("config.json", "latents.safetensors", "metrics.json", "model.safetensors")


def promote(name: str, alias: str = "champion") -> dict[str, Any]:
    """Register the model of the run `name`, or of the best run of the campaign `name`, and point `alias` to it.

    A run that is registered already keeps its version; only the alias moves. Gives model, version, alias and run.
    Raises ValueError for an unknown name, a run that has not finished or whose model does not load, or an alias that
    MLflow does not take.
    """
    if not ALIAS.fullmatch(alias):
        raise ValueError(f"--alias takes letters, digits, '_' and '-', not 'latest' nor a version, not '{alias}'")
    check_uri(settings().store)
    run = best_of(name) or name
    record = find_run(run)
    if not record.finished():
        raise ValueError(f"run '{run}' has not finished: start its command again, then promote it")
    if not record.run_id:
        raise ValueError(f"run '{run}' is not known to MLflow: start its command again while MLflow answers")
    _check(record)
    version = _registered(record.run_id) or _register(record)
    tracking.client().set_registered_model_alias(tracking.MODEL_NAME, alias, version)
    fs, root = record.place
    return {
        "model": tracking.MODEL_NAME, "version": version, "alias": alias, "run": run, "run_id": record.run_id,
        "metrics": read_json(fs, f"{root}/model/metrics.json"),
    }  # fmt: skip


def _check(record: Any) -> None:
    """Raise ValueError unless the run's model loads and decodes: what is served now is not given up for less."""
    import torch

    from aecore.training.checkpoint import load_model

    fs, root = record.place
    try:
        saved = load_model(fs, f"{root}/model")
        saved.model.decode(torch.zeros(1, saved.model.z_dim))
    except Exception as error:  # whatever is wrong with it, it is the run's files
        raise ValueError(f"run '{record.name}' is not promoted, its model does not load: {one_line(error)}") from error


def _registered(run_id: str) -> str | None:
    found = tracking.client().search_model_versions(f"name = '{tracking.MODEL_NAME}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def _register(record: Any) -> str:
    from mlflow.exceptions import MlflowException

    client = tracking.client()
    fs, root = record.place
    files = {name: read_bytes(fs, f"{root}/model/{name}") for name in MODEL_FILES}
    tracking.log_files(record.run_id, files, "model")
    try:
        client.create_registered_model(tracking.MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(record.run_id).info.artifact_uri}/model"
    tags = {"zpoint.run": record.name}
    return str(client.create_model_version(tracking.MODEL_NAME, source, record.run_id, tags=tags).version)
