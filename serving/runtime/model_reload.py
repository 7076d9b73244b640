"""Follow the alias: a thread of each replica polls MLflow and swaps the model when the alias names another version.

The new version is loaded and warmed up beside the old one, which keeps serving. Then `slot.current` is assigned;
requests in progress end on the model they began with. A version that does not load is refused, the old one stays, and
after RETRY_S loading is tried again. If MLflow does not answer, nothing changes.

Serve's `user_config` would not do: it changes only on a redeploy, and the alias moves in MLflow without one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from aecore.errors import one_line
from cluster.memory import release_memory
from cluster.settings import hide_credentials
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelInfo, ModelSlot, ServedModel
from serving.runtime.registry import ModelVersion, find_model_version

log = logging.getLogger(__name__)
POLL_S, RETRY_S = 2.0, 60.0
DRAIN_POLLS = 5  # after this many polls the old model's requests have ended: they wait at most 10 s in its batchers
LoadFn = Callable[[ModelVersion], ServedModel]
SaveFn = Callable[[ModelVersion], None]


def load_first_loadable(candidates: Iterable[ModelVersion], load: LoadFn) -> tuple[ModelVersion, ModelSlot]:
    """Return the first of `candidates` that loads, and its slot, whose `refused` says why the very first did not.

    Raises the error of the last one if none loads.
    """
    refused, last_error = None, ValueError("no candidate versions to serve")
    for version in candidates:
        try:
            return version, ModelSlot(load(version), refused)
        except Exception as error:
            refused, last_error = refused or _refuse(version, error), error
    raise last_error


def follow_alias(slot: ModelSlot, alias: str, load: LoadFn, save_served: SaveFn, metrics: EndpointMetrics) -> None:
    """Keep `slot` at the version that `alias` names; never returns. `save_served` gets each version after its swap."""
    sleeper, unreachable = threading.Event(), False
    served, polls_since_swap = _identity(slot.current.info), 0
    while not sleeper.wait(POLL_S):
        polls_since_swap += 1
        if polls_since_swap == DRAIN_POLLS:
            release_memory()
        try:
            version, unreachable = find_model_version(alias), False
        except Exception as error:
            if not unreachable:
                log.warning(
                    "cannot resolve alias '%s': %s; still serving %s",
                    alias,
                    hide_credentials(str(error)),
                    slot.current.info.label,
                )
            unreachable = True
            continue
        try:
            update_slot(slot, version, load, save_served, metrics)
        except Exception:  # of `save_served`, for example; this thread must go on
            log.exception("cannot follow alias '%s'; still serving %s", alias, slot.current.info.label)
        if _identity(slot.current.info) != served:
            served, polls_since_swap = _identity(slot.current.info), 0


def update_slot(
    slot: ModelSlot, version: ModelVersion, load: LoadFn, save_served: SaveFn, metrics: EndpointMetrics
) -> None:
    """Load `version` into `slot`, unless it is there already or was refused less than RETRY_S ago.

    If only its sampler has changed, that of the loaded model is replaced.
    """
    if _identity(version) == _identity(slot.current.info):
        slot.refused = None
        if version.sampler != slot.current.info.sampler:
            slot.current.info = replace(slot.current.info, sampler=version.sampler)
            save_served(version)
        return
    if slot.refused and slot.refused["version"] == version.version and time.monotonic() < slot.retry_at:
        return
    old_label = slot.current.info.label
    try:
        slot.current = load(version)
    except Exception as error:
        slot.refused, slot.retry_at = _refuse(version, error), time.monotonic() + RETRY_S
        metrics.count_refused_version()
        return
    slot.refused = None
    metrics.set_served_version(version.alias, version.name, version.version, swap=True)
    save_served(version)
    log.warning("serving %s/%s instead of %s", version.name, version.version, old_label)


def _identity(version: ModelVersion | ModelInfo) -> tuple[str, str]:
    return version.version, version.run_id  # numbers start again if the registered model was deleted


def _refuse(version: ModelVersion, error: Exception) -> dict[str, str]:
    reason = hide_credentials(one_line(error, None))[:500]
    log.error("cannot load %s version %s, so it is refused: %s", version.name, version.version, reason)
    return {"version": version.version, "reason": reason}
