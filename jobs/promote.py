"""The promote job: register a finished run's model in MLflow and move an alias to it."""

import itertools
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.errors import one_line
from cluster import tracking
from cluster.lineage import COMMIT_TAG, JOB_TAG
from cluster.lock import LockedError, hold_lock
from cluster.settings import hide_credentials, settings
from cluster.storage import check_uri
from jobs.mlflow_model import describe, write_mlflow_model
from jobs.mlflow_run import MlflowRun
from jobs.run_store import RunStore, find_run, resolve_name
from jobs.tune.campaign import find_best_run
from jobs.tune.lookup import find_trial

if TYPE_CHECKING:  # torch
    from aecore.training.checkpoint import SavedModel

log = logging.getLogger(__name__)
LOCK_POLL_S = 0.5
LINEAGE_TAGS = (COMMIT_TAG, JOB_TAG, "zpoint.dataset", "zpoint.recipe")  # of a run, and of its versions
ALIAS = re.compile(r"(?i)(?!latest$|v\d+$)[a-z0-9_-]{1,255}")


def promote(name: str, alias: str = "champion", run: str | None = None) -> dict[str, Any]:
    """Register the model of run `name`, or of the best or the given `run` of campaign `name`; point `alias` to it.

    `name` may also be the MLflow id of either. A run that MLflow lacks, or has deleted, is logged or restored first.

    A run that is registered already keeps its version, whose files are uploaded again if they do not load. The
    version's tag names the sampler that serves it best: the campaign's, or the one with the lowest distance. Returns
    model, version, alias, run, MLflow run id, sampler and metrics. Raises ValueError for an unknown name, a run that
    has not finished or whose model does not load, or an alias that MLflow does not accept.
    """
    from aecore.pretrained import PretrainedModel

    if not ALIAS.fullmatch(alias):
        raise ValueError(f"--alias takes letters, digits, '_' and '-', not 'latest' nor a version, not '{alias}'")
    check_uri(settings().store)
    name = resolve_name(name)
    promoted, sampler, choice = name, "", "Promoted by its name."
    if run:
        promoted, choice = find_trial(name, run), f"Promoted by its name, of campaign {name}."
    elif best := find_best_run(name):
        promoted, sampler, choice = best.run, best.sampler, f"Best run of campaign {name} by the rule: {best.rule}."
    run_store = find_run(promoted)
    run_store.check_finished()
    saved = _load(run_store)
    sampler = sampler or PretrainedModel(saved).best_sampler
    with _promotion_lock(run_store):
        _log_to_mlflow(run_store)
        version, folder = _find_or_register(run_store, saved)
    text = describe(run_store, saved, choice, sampler, folder)
    tracking.client().update_model_version(tracking.MODEL_NAME, version, text)
    tracking.client().set_model_version_tag(tracking.MODEL_NAME, version, tracking.SAMPLER_TAG, sampler)
    tracking.client().set_registered_model_alias(tracking.MODEL_NAME, alias, version)
    return {
        "model": tracking.MODEL_NAME, "version": version, "alias": alias, "run": run_store.name,
        "run_id": run_store.run_id, "sampler": sampler, "metrics": saved.metrics,
    }  # fmt: skip


def _load(run_store: RunStore) -> "SavedModel":
    """Return the run's model. Raises ValueError unless it loads and decodes: a broken one must not be served."""
    import torch

    try:
        saved = run_store.load_model()
        saved.model.decode(torch.zeros(1, saved.model.z_dim))
        return saved
    except Exception as error:  # of any kind: the run's files cause it
        raise ValueError(
            f"run '{run_store.name}' is not promoted, its model does not load: {one_line(error)}"
        ) from error


def _log_to_mlflow(run_store: RunStore) -> None:
    """Log the run to MLflow if it is not there, or not whole. Raises ValueError if MLflow fails."""
    previous_id = run_store.run_id
    try:
        MlflowRun(run_store).log_epochs()
    except Exception as error:  # of any kind, by the tracking server
        cause = tracking.describe_full_database(error) or hide_credentials(one_line(error))
        raise ValueError(f"run '{run_store.name}' is not in MLflow, which cannot take it now: {cause}") from error
    if run_store.run_id != previous_id:
        tracking.set_status(run_store.run_id, "FINISHED")


@contextmanager
def _promotion_lock(run_store: RunStore) -> Iterator[None]:
    """Hold the lock of the run's promotion inside the block; wait while another process holds it."""
    uri, activity = f"{settings().store}/locks/promote-{run_store.name}", f"run '{run_store.name}' is being promoted"
    with ExitStack() as stack:
        for attempt in itertools.count():
            try:
                stack.enter_context(hold_lock(uri, activity, "promote another run"))
                break
            except LockedError as error:
                if not attempt:
                    log.warning("waiting for the lock: %s", error)
                time.sleep(LOCK_POLL_S)
        yield


def _find_or_register(run_store: RunStore, saved: "SavedModel") -> tuple[str, str]:
    """Return the version of the run's model and its artifact folder; register it if there is none.

    A run that was continued, or saved again with other stored points, has several versions. Files of a version that do
    not load are uploaded again.
    """
    from mlflow.exceptions import MlflowException

    client, run_id = tracking.client(), run_store.run_id
    epochs = str(saved.recipe.optim.epochs)
    run = client.get_run(run_id)
    versions = client.search_model_versions(f"name = '{tracking.MODEL_NAME}' and run_id = '{run_id}'")
    tags = {"zpoint.epochs": epochs, "zpoint.points": str(saved.recipe.points.images)}
    parameters = {"zpoint.epochs": "optim.epochs", "zpoint.points": "points.images"}  # of versions without the tag

    def is_same(version: Any) -> bool:
        stored = {tag: run.data.params.get(parameter, tags[tag]) for tag, parameter in parameters.items()}
        return {tag: version.tags.get(tag, stored[tag]) for tag in tags} == tags

    same = [version for version in versions if is_same(version)]
    artifact_path = same[0].source.rpartition("/")[2] if same else _new_path(run_id, epochs)
    if not same or not _loads(run_id, artifact_path):
        with tempfile.TemporaryDirectory() as folder:
            write_mlflow_model(Path(folder, "model"), run_store, saved, artifact_path)
            client.log_artifacts(run_id, f"{folder}/model", artifact_path)
    if same:
        return str(same[0].version), artifact_path
    try:
        client.create_registered_model(tracking.MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags |= {"zpoint.run": run_store.name}
    tags |= {name: run.data.tags[name] for name in LINEAGE_TAGS if name in run.data.tags}
    source = f"{run.info.artifact_uri}/{artifact_path}"
    return str(client.create_model_version(tracking.MODEL_NAME, source, run_id, tags=tags).version), artifact_path


def _new_path(run_id: str, epochs: str) -> str:
    """Return a folder that the run's artifacts lack: a version's files never change, and an upload deletes none."""
    taken = {artifact.path for artifact in tracking.client().list_artifacts(run_id)}
    numbered = (f"model-epoch-{epochs}-{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain(["model", f"model-epoch-{epochs}"], numbered) if path not in taken)


def _loads(run_id: str, artifact_path: str) -> bool:
    """Return True if the model in the run's artifact folder loads."""
    from aecore.training.checkpoint import load_model

    with tempfile.TemporaryDirectory() as folder:
        try:
            load_model(pafs.LocalFileSystem(), tracking.client().download_artifacts(run_id, artifact_path, folder))
        except Exception as error:  # of any kind, by the store or the files
            log.warning("the registered %s does not load: %s; uploading it again", artifact_path, one_line(error))
            return False
    return True
