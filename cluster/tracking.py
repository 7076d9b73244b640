"""MLflow from the driver's side: runs, metrics, artifacts. These raise what MLflow raises; callers that must not
stop for it go through `best_effort`."""

import fcntl
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from cluster.settings import settings

log = logging.getLogger(__name__)
MODEL_NAME = "zpoint"
KEY = "zpoint.key"  # the tag by which a run is found again
PARAM_LIMIT = 500  # characters of a parameter's value that every MLflow store takes


def client() -> Any:
    """A `mlflow.MlflowClient` of the tracking URI in force. The embedded store is made on first use."""
    return _client(settings().tracking_uri)


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    if uri.startswith("file:") or "://" not in uri:
        raise ValueError(f"MLFLOW_TRACKING_URI '{uri}' is not supported: it takes sqlite:/// or http(s)://")
    # Seconds instead of MLflow's minutes: a dead server must not hold up a training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    path = uri.removeprefix("sqlite:///")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(f"{path}.lock", "w") as lock:  # its tables are made on first use, which fails for two at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = MlflowClient(tracking_uri=uri, registry_uri=uri)
        made.search_experiments(max_results=1)
    return made


def experiment_id() -> str:
    """The id of zpoint's experiment, made on first use; one for each place where artifacts are kept."""
    now = settings()
    name = "zpoint" if now.store == str(now.home) else f"zpoint {now.store}"
    found = client().get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A tracking server knows itself where it keeps artifacts, unless the user named a store.
    ours = now.tracking_uri.startswith("sqlite:") or now.store != str(now.home)
    from mlflow.exceptions import MlflowException

    try:
        return client().create_experiment(name, artifact_location=now.artifacts_uri if ours else None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another training was first
            raise
    found = client().get_experiment_by_name(name)
    assert found is not None
    return found.experiment_id


def create_run(name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Open a run with flat `params` and `tags`, or find the one with the same tag `KEY`; gives its id."""
    from mlflow.entities import Param

    experiment = experiment_id()
    known = client().search_runs([experiment], f"tags.`{KEY}` = '{tags[KEY]}'", max_results=1) if KEY in tags else []
    run = known[0] if known else client().create_run(experiment, run_name=name, tags=dict(tags))
    run_id = run.info.run_id
    client().log_batch(run_id, params=[Param(key, str(value)[:PARAM_LIMIT]) for key, value in params.items()])
    return run_id


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int, when: int) -> None:
    """Log one point of each metric, measured at `when` (ms); values that are not finite are left out.

    MLflow keeps equal points once, so it does no harm to log the same again.
    """
    from mlflow.entities import Metric

    points = [Metric(key, value, when, step) for key, value in metrics.items() if math.isfinite(value)]
    client().log_batch(run_id, metrics=points)


def log_files(run_id: str, files: Mapping[str, bytes], folder: str) -> None:
    """Log artifacts `folder/name` of the run from `files`, name to content."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            with open(os.path.join(place, name), "wb") as out:
                out.write(data)
        client().log_artifacts(run_id, place, folder)


def set_status(run_id: str, status: str) -> None:
    """Note that a run is RUNNING, FINISHED, FAILED or KILLED; nothing for an empty id. Raises nothing."""

    def note() -> None:
        (client().update_run if status == "RUNNING" else client().set_terminated)(run_id, status)

    if run_id:
        best_effort(f"note that the run is {status}", note)


def forget_run(run_id: str) -> None:
    """Delete a run; nothing for an empty id. Raises nothing."""
    if run_id:
        best_effort("forget the run", lambda: client().delete_run(run_id))


def status_of(error: BaseException) -> str:
    """How a run stands that ended with `error`."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def find_runs(filter_string: str = "", limit: int = 1_000) -> list[Any]:
    """zpoint's runs, newest first, as MLflow's Run entities."""
    ids = [e.experiment_id for e in client().search_experiments() if e.name.split(" ")[0] == "zpoint"]
    return list(client().search_runs(ids, filter_string, max_results=limit)) if ids else []


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested dicts as `section.key` pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def best_effort(what: str, call: Callable[[], Any], otherwise: Any = None, *, tell: bool = True) -> Any:
    """`call()`, or `otherwise` with a warning (if `tell`) when it fails: no failure of MLflow stops a training."""
    try:
        return call()
    except Exception as error:
        if not tell:
            return otherwise
        log.warning("MLflow could not %s: %s", what, " ".join(str(error).split())[:300])
        return otherwise
