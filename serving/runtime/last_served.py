"""The version that was served last, kept in a named Ray actor: a new replica serves it if the alias' version is broken.

The actor outlives every replica. It ends with `forget_all` (`stop_endpoint` calls it) or with its Ray cluster.
"""

from contextlib import suppress
from typing import Any

from serving.runtime.registry import ModelVersion

ACTOR_NAME = NAMESPACE = "zpoint-last-served"
TIMEOUT_S = 10.0


class LastServedVersions:
    """Hold the last served version for each pair of tracking URI and alias."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], ModelVersion] = {}

    def set(self, version: ModelVersion) -> None:
        self._versions[version.tracking_uri, version.alias] = version

    def get(self, tracking_uri: str, alias: str) -> ModelVersion | None:
        return self._versions.get((tracking_uri, alias))


def save(version: ModelVersion) -> None:
    """Save `version` as the last served one of its alias. Does not wait for the actor."""
    import ray

    options = {"name": ACTOR_NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor: Any = ray.remote(LastServedVersions).options(num_cpus=0, max_restarts=-1, **options).remote()
    actor.set.remote(version)


def load(tracking_uri: str, alias: str) -> ModelVersion | None:
    """Return the last served version of `alias`; None if none was saved. Raises Ray's errors if the actor is away."""
    import ray

    try:
        actor: Any = ray.get_actor(ACTOR_NAME, NAMESPACE)
    except ValueError:
        return None
    version: ray.ObjectRef[ModelVersion | None] = actor.get.remote(tracking_uri, alias)
    return ray.get(version, timeout=TIMEOUT_S)


def forget_all() -> None:
    """End the actor, if there is one."""
    import ray

    with suppress(ValueError):
        ray.kill(ray.get_actor(ACTOR_NAME, NAMESPACE))
