"""Runs, metrics and artifacts in MLflow, called by the driver.

Most functions raise what MLflow raises; a caller that must go on without MLflow uses `best_effort`.
"""

import fcntl
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from textwrap import shorten
from typing import Any

from cluster.network import check_proxies, configure_libraries
from cluster.settings import hide_credentials, settings

log = logging.getLogger(__name__)
MODEL_NAME = "zpoint"
KEY_TAG = "zpoint.key"  # identifies a run whose creation is repeated
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")  # of MLFLOW_TRACKING_URI
DRIVER_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
SAMPLER_TAG = "zpoint.sampler"  # of a model version: the sampler that serves it best
PARAM_LIMIT = 500  # characters of a parameter's value that every MLflow store accepts


def client() -> Any:
    """Return a `mlflow.MlflowClient` of the current tracking URI; create the embedded store on first use."""
    return _client(settings().tracking_uri)


def check_tracking_uri() -> None:
    """Raise ValueError if MLflow cannot read MLFLOW_TRACKING_URI, or lacks its database's driver; send nothing."""
    uri = settings().tracking_uri
    scheme = uri.partition(":")[0]
    dialect, _, driver = scheme.partition("+")
    label = f"MLFLOW_TRACKING_URI '{hide_credentials(uri)}'"
    if dialect == "postgres":
        raise ValueError(f"{label}: SQLAlchemy calls it postgresql://")
    if "://" not in uri or dialect not in SCHEMES:
        raise ValueError(
            f"{label} is not supported: it takes sqlite:///, http(s)://, postgresql://, mysql:// or mssql://"
        )
    if dialect == "sqlite" and not uri.startswith(f"{scheme}:///"):
        raise ValueError(f"{label} names no file: write sqlite:///relative/path or sqlite:////absolute/path")
    if dialect in ("http", "https", "sqlite"):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        package = DRIVER_PACKAGES.get(str(error.name), str(error.name))
        raise ValueError(f"{label} needs the driver {error.name}: `pip install '{package}'`") from error
    except ImportError as error:
        raise ValueError(f"{label}: its driver does not load: {error}") from error
    except ArgumentError as error:  # no URL, or a driver that SQLAlchemy does not know
        reason = f"SQLAlchemy has no driver '{driver}'" if driver else hide_credentials(str(error))
        raise ValueError(f"{label} is not readable: {reason}") from error


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    check_tracking_uri()
    configure_libraries()
    if uri.startswith("http"):
        check_proxies(uri)
    # Seconds instead of MLflow's minutes: a training must not wait for a dead server.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each run that ends
    from mlflow import MlflowClient

    # MLflow's import sets their levels. Their errors are raised as well as logged, urllib3's at each retry.
    for logger in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    if uri.startswith("http"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    from sqlalchemy import NullPool, create_engine, make_url

    if not uri.startswith("sqlite"):
        create_engine(uri, poolclass=NullPool).connect().close()  # MLflow would repeat a failure for 100 s
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    path = make_url(uri).database or ""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(f"{path}.lock", "w") as lock:  # MLflow creates the tables on first use, which two processes cannot share
        fcntl.flock(lock, fcntl.LOCK_EX)
        sqlite_client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        sqlite_client.search_experiments(max_results=1)
    return sqlite_client


def find_experiment() -> Any:
    """Return zpoint's `mlflow.entities.Experiment`, one for each artifact store, also a deleted one; None without."""
    return client().get_experiment_by_name(_experiment_name())


def experiment_id() -> str:
    """Return the id of zpoint's experiment; create it on first use, and restore it if it was deleted."""
    from mlflow.exceptions import MlflowException

    experiment = find_experiment()
    if experiment is None:
        current = settings()
        # A tracking server has an artifact store of its own; it is used unless the user named one.
        named_store = current.tracking_uri.startswith("sqlite") or current.store != str(current.home)
        location = current.artifacts_uri if named_store else None
        try:
            return client().create_experiment(_experiment_name(), artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process meanwhile
                raise
        experiment = find_experiment()
    if experiment.lifecycle_stage == "deleted":  # MLflow gives its name to no other experiment
        client().restore_experiment(experiment.experiment_id)
        log.warning("the experiment '%s' had been deleted in MLflow: restored", experiment.name)
    return experiment.experiment_id


def _experiment_name() -> str:
    current = settings()
    return "zpoint" if current.store == str(current.home) else f"zpoint {current.store}"


def get_run(run_id: str) -> Any:
    """Return the run as `mlflow.entities.Run`, also a deleted one; None if MLflow has none with this id."""
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def reopen_run(run_id: str) -> bool:
    """Return if MLflow has the run; restore it if it was deleted."""
    experiment_id()  # a run of a deleted experiment is restored with it
    run = get_run(run_id)
    if run is not None and run.info.lifecycle_stage == "deleted":
        client().restore_run(run_id)
        log.warning("the run '%s' had been deleted in MLflow: restored", run.info.run_name)
    return run is not None


def create_run(name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return the id of the run with the same `KEY_TAG` in `tags`, or of a new run; log flat `params` to it."""
    from mlflow.entities import Param

    experiment, runs = experiment_id(), []
    if KEY_TAG in tags:
        runs = client().search_runs([experiment], f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'", max_results=1)
    run = runs[0] if runs else client().create_run(experiment, run_name=name, tags=dict(tags))
    run_id = run.info.run_id
    client().log_batch(run_id, params=[Param(key, str(value)[:PARAM_LIMIT]) for key, value in params.items()])
    return run_id


def log_dataset(run_id: str, name: str, uri: str, digest: str, profile: Mapping[str, Any]) -> None:
    """Log a dataset as the run's input; MLflow keeps 36 characters of `digest`. Equal ones are stored once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source_type, source = ("s3" if uri.startswith("s3://") else "local"), json.dumps({"uri": uri})
    dataset = Dataset(name, digest[:36], source_type, source, profile=json.dumps(profile))
    client().log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int, timestamp_ms: int) -> None:
    """Log one point of each metric, measured at `timestamp_ms`; skip values that are not finite.

    MLflow stores equal points once, so logging a point again is harmless.
    """
    from mlflow.entities import Metric

    points = [Metric(key, value, timestamp_ms, step) for key, value in metrics.items() if math.isfinite(value)]
    client().log_batch(run_id, metrics=points)


def log_files(run_id: str, files: Mapping[str, bytes], folder: str) -> None:
    """Log `files`, contents by name, as artifacts `folder/name` of the run."""
    with tempfile.TemporaryDirectory() as local_folder:
        for name, data in files.items():
            with open(os.path.join(local_folder, name), "wb") as file:
                file.write(data)
        client().log_artifacts(run_id, local_folder, folder)


def set_status(run_id: str, status: str) -> None:
    """Set a run's status: RUNNING, FINISHED, FAILED or KILLED. Do nothing for an empty id; log failures."""

    def update() -> None:
        (client().update_run if status == "RUNNING" else client().set_terminated)(run_id, status)

    if run_id:
        best_effort(f"set the run's status to {status}", update)


def delete_run(run_id: str) -> None:
    """Delete a run. Do nothing for an empty id; log failures."""
    if run_id:
        best_effort("delete the run", lambda: client().delete_run(run_id))


def find_runs(filter_string: str = "") -> list[Any]:
    """Return zpoint's runs as `mlflow.entities.Run`, newest first."""
    experiments = _read_all_pages(client().search_experiments, filter_string="name LIKE 'zpoint%'")
    ids = [e.experiment_id for e in experiments if e.name.split(" ")[0] == "zpoint"]
    return _read_all_pages(client().search_runs, ids, filter_string) if ids else []


def _read_all_pages(search: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    page = search(*args, **kwargs)
    items = list(page)
    while page.token:
        page = search(*args, **kwargs, page_token=page.token)
        items += page
    return items


def best_effort(action: str, call: Callable[[], Any], default: Any = None, *, warn: bool = True) -> Any:
    """Return `call()`, or `default` if it fails, with a warning if `warn`: MLflow's failures stop no training."""
    try:
        return call()
    except Exception as error:
        if warn:
            log.warning("MLflow could not %s: %s", action, describe_full_database(error) or _cause(error))
        return default


def _cause(error: BaseException) -> str:
    """Return the error in one line without passwords; a long one is cut, and the first error of its chain follows."""
    text, first = hide_credentials(str(error)), error
    while (earlier := first.__cause__ or first.__context__) is not None:
        first = earlier
    if first is error or len(text) <= 300:
        return shorten(text, 300)
    return f"{shorten(text, 200)} {shorten(hide_credentials(str(first)), 100)}"


def describe_full_database(error: BaseException) -> str:
    """Return the cause and the fix if `error` is that of a SQLite database without space, which names no file; else "".

    A database that was half created then is completed by the next call of `client`.
    """
    if "database or disk is full" not in str(error):
        return ""
    return f"no space left on the disk of {settings().tracking_uri.partition(':///')[2]}; free some space there"
