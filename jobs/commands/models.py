"""`zpoint models`: the model versions in MLflow's registry, newest first, and where they are served."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from cluster import tracking
from cluster.network import ENDPOINT_URL, accepts_connections
from cluster.settings import settings
from serving.client import Client

TIMEOUT_S = 10.0


def list_models(urls: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one dict a version: version, aliases, served, run, run_id, created, sampler, metrics of its epoch.

    `psnr` is of the validation images, in dB; `distance` the Frechet distance in HOG features of `sampler`'s samples.
    `served` names the aliases of the version at the endpoints `urls`, as `URL (ALIAS)`; without any, at ENDPOINT_URL if
    one answers there. Raises ValueError if one of `urls` does not answer.
    """
    served = _served_at(urls)
    client, of_zpoint = tracking.client(), f"name = '{tracking.MODEL_NAME}'"
    models, versions = client.search_registered_models(of_zpoint), client.search_model_versions(of_zpoint)
    # A search for versions leaves their aliases out.
    version_by_alias = {alias: str(version) for model in models for alias, version in model.aliases.items()}
    runs = {run.info.run_id: run for run in tracking.find_runs()}
    newest_first = sorted(versions, key=lambda version: -int(version.version))
    return [_describe(version, version_by_alias, runs.get(version.run_id), served) for version in newest_first]


def _served_at(urls: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return `URL (ALIAS)`, run_id and version of each model that the endpoints serve."""
    default = urlsplit(ENDPOINT_URL)
    if not urls and not accepts_connections(default.hostname or "", default.port or 80, timeout_s=1):
        return []
    served = []
    for url in urls or [ENDPOINT_URL]:
        try:
            with Client(url, settings().token, TIMEOUT_S) as endpoint:
                models = endpoint.models()
            served += [(f"{url} ({model['alias']})", model["run_id"], model["version"]) for model in models]
        except (ValueError, KeyError, TypeError) as error:  # also another server, without JSON or with other keys
            if urls:
                raise ValueError(f"no zpoint endpoint answers at {url}: {error}") from None
    return served


def _describe(
    version: Any, version_by_alias: dict[str, str], run: Any, served: list[tuple[str, str, str]]
) -> dict[str, Any]:
    sampler = version.tags.get(tracking.SAMPLER_TAG, "normal")
    key = (version.run_id, str(version.version))  # another registry may have a version of the same number
    keys = {"psnr": "valid_psnr", "distance": f"hog_frechet_{sampler}"}
    metrics = _metrics(version, run, keys.values()) if run else {}
    return {
        "version": str(version.version),
        "aliases": sorted(alias for alias, aliased in version_by_alias.items() if aliased == str(version.version)),
        "served": [where for where, *served_key in served if tuple(served_key) == key],
        "run": version.tags.get("zpoint.run", ""),
        "run_id": version.run_id,
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000).isoformat(" ", "minutes"),
        "sampler": sampler,
        **{name: metrics[key] for name, key in keys.items() if key in metrics},
    }


def _metrics(version: Any, run: Any, keys: Iterable[str]) -> Mapping[str, float]:
    """Return the metrics `keys` of the run at the epoch of the version: the run may have been continued since."""
    epochs = version.tags.get("zpoint.epochs") or run.data.params.get("optim.epochs", "")
    if epochs in ("", run.data.tags.get("zpoint.epoch")):
        return run.data.metrics
    history = {key: tracking.client().get_metric_history(version.run_id, key) for key in keys}
    return {key: point.value for key, points in history.items() for point in points if str(point.step) == epochs}
