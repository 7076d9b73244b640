"""`zpoint models`: the model versions in MLflow's registry, newest first."""

from datetime import datetime
from typing import Any

from cluster import tracking


def list_models() -> list[dict[str, Any]]:
    """Return one dict a version: version, aliases, run, run_id, created, sampler, and the last metrics of its run.

    `psnr` is of the validation images, in dB; `frechet` the distance in HOG features of the samples of `sampler`.
    """
    client, of_zpoint = tracking.client(), f"name = '{tracking.MODEL_NAME}'"
    models, versions = client.search_registered_models(of_zpoint), client.search_model_versions(of_zpoint)
    # A search for versions leaves their aliases out.
    version_by_alias = {alias: str(version) for model in models for alias, version in model.aliases.items()}
    runs = {run.info.run_id: run for run in tracking.find_runs()}
    newest_first = sorted(versions, key=lambda version: -int(version.version))
    return [_describe(version, version_by_alias, runs.get(version.run_id)) for version in newest_first]


def _describe(version: Any, version_by_alias: dict[str, str], run: Any) -> dict[str, Any]:
    sampler = version.tags.get(tracking.SAMPLER_TAG, "normal")
    metrics = run.data.metrics if run else {}
    keys = {"psnr": "valid_psnr", "frechet": f"hog_frechet_{sampler}"}
    return {
        "version": str(version.version),
        "aliases": sorted(alias for alias, aliased in version_by_alias.items() if aliased == str(version.version)),
        "run": version.tags.get("zpoint.run", ""),
        "run_id": version.run_id,
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000).isoformat(" ", "minutes"),
        "sampler": sampler,
        **{name: metrics[key] for name, key in keys.items() if key in metrics},
    }
