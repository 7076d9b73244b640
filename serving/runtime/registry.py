"""The model version that an alias names in MLflow's registry, and its model folder."""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster import tracking
from cluster.settings import hide_credentials, settings
from cluster.storage import open_uri

if TYPE_CHECKING:  # resolving an alias does not need torch
    from aecore.training.checkpoint import SavedModel

log = logging.getLogger(__name__)
ALIAS_POLL_S = 15.0


class UnknownAliasError(ValueError):
    """MLflow's registry has no model version with this alias."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered model version. `source` is the URI of its model folder, `sampler` the one that serves it best."""

    name: str
    version: str
    alias: str
    run_id: str
    source: str
    tracking_uri: str
    sampler: str = "normal"


def find_model_version(alias: str = "champion") -> ModelVersion:
    """Return the version that `alias` names in MLflow's registry. Raises UnknownAliasError if there is none."""
    from mlflow.exceptions import MlflowException

    client = tracking.client()
    try:
        entry = client.get_model_version_by_alias(tracking.MODEL_NAME, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UnknownAliasError(f"no model has the alias '{alias}': promote a run first (zpoint promote RUN)") from None
    return ModelVersion(
        tracking.MODEL_NAME, str(entry.version), alias, entry.run_id or "", entry.source, settings().tracking_uri,
        entry.tags.get(tracking.SAMPLER_TAG, "normal"),
    )  # fmt: skip


def find_model_versions(aliases: Sequence[str]) -> list[ModelVersion]:
    """Return the version of each alias, as `find_model_version` does. Raises ValueError for none, or one twice."""
    if not aliases or len(set(aliases)) < len(aliases):
        raise ValueError(f"aliases to serve: {', '.join(aliases) or 'none'}; name each once, at least one")
    return [find_model_version(alias) for alias in aliases]


def wait_for_model_versions(aliases: Sequence[str]) -> list[ModelVersion]:
    """Return the version of each alias once MLflow answers and has them all; log what is missing.

    Raises ValueError for no alias, or one twice.
    """
    from mlflow.exceptions import MlflowException

    printed = ""
    while True:
        try:
            return find_model_versions(aliases)
        except (UnknownAliasError, MlflowException) as error:
            if (message := hide_credentials(str(error))) != printed:
                log.warning("waiting for the model to serve: %s", message)
                printed = message
        time.sleep(ALIAS_POLL_S)


def read_model(source: str, tracking_uri: str) -> "SavedModel":
    """Return the model in the artifact folder `source`: a path, file://, s3://, or a URI that only MLflow reads."""
    from aecore.model.autoencoder import default_device
    from aecore.training.checkpoint import load_model

    if urlsplit(source).scheme in ("", "file", "s3"):
        return load_model(*open_uri(source), default_device())
    import mlflow.artifacts

    with tempfile.TemporaryDirectory() as folder:
        # Not the whole folder, which holds Python source too: MLflow's server sends each file by a request of its own.
        for file in mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=tracking_uri):
            name = file.path.rpartition("/")[2]
            if name.endswith((".json", ".safetensors")):
                mlflow.artifacts.download_artifacts(f"{source}/{name}", dst_path=folder, tracking_uri=tracking_uri)
        return load_model(*open_uri(folder), default_device())
