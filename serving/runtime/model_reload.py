"""The alias decides what is served: a thread of each replica looks where it points and swaps the model.

The new version is loaded and warmed beside the old one, which goes on answering; then `slot.current` is put, and
requests that had begun end on the model they began with. A version that does not load is refused, and the old one
stays; after RETRY_SECONDS it is tried again. Where MLflow does not answer, everything stays as it is.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable

from aecore.errors import one_line
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelSlot, ServedModel
from serving.runtime.registry import ModelVersion, find_model_version

log = logging.getLogger(__name__)
POLL_SECONDS, RETRY_SECONDS = 2.0, 60.0
GONE_LOOKS = 5  # after so many the requests that had begun on the model before have ended: a batcher's patience
Load = Callable[[ModelVersion], ServedModel]


def first_that_loads(candidates: list[ModelVersion], load: Load) -> ModelSlot:
    """The slot of a starting replica: the first of `candidates` that loads, with the refusal of the first of all.

    Raises what the last one raised when none does.
    """
    refused = None
    for index, champion in enumerate(candidates):
        try:
            return ModelSlot(load(champion), refused)
        except Exception as error:
            if index == len(candidates) - 1:
                raise
            refused = refused or _refusal(champion, error)
    raise ValueError("there is no model to serve")


def follow(
    slot: ModelSlot, alias: str, load: Load, note: Callable[[ModelVersion], None], metrics: EndpointMetrics
) -> None:
    """Keep `slot` at what `alias` names, for ever; `note` is told of each version that is served."""
    pause, silent = threading.Event(), False
    served, looks = slot.current.info.version, 0
    while not pause.wait(POLL_SECONDS):
        looks += 1
        if looks == GONE_LOOKS:
            _give_back_memory()
        try:
            found, silent = find_model_version(alias), False
        except Exception as error:
            if not silent:
                log.warning(
                    "the alias '%s' cannot be looked up, so %s stays: %s", alias, slot.current.info.label, error
                )
            silent = True
            continue
        try:
            look(slot, found, load, note, metrics)
        except Exception:  # the cluster's memory of what is served, say: this thread must go on
            log.exception("what the alias '%s' names was looked at in vain", alias)
        if slot.current.info.version != served:
            served, looks = slot.current.info.version, 0


def look(
    slot: ModelSlot, found: ModelVersion, load: Load, note: Callable[[ModelVersion], None], metrics: EndpointMetrics
) -> None:
    """Put the version that the alias names now into `slot`, unless it is there or was refused a moment ago."""
    if found.version == slot.current.info.version:
        slot.refused = None
        return
    if slot.refused and slot.refused["version"] == found.version and time.monotonic() < slot.retry_at:
        return
    before = slot.current.info.label
    try:
        slot.current = load(found)
    except Exception as error:
        slot.refused, slot.retry_at = _refusal(found, error), time.monotonic() + RETRY_SECONDS
        metrics.count_refused_version()
        return
    slot.refused = None
    metrics.set_served_version(found.name, found.version, swap=True)
    note(found)
    log.warning("serving %s/%s in the place of %s", found.name, found.version, before)


def _give_back_memory() -> None:
    """Return what loading and the model before have freed: glibc keeps it, 60 MB more at each swap of a 25 MB model."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _refusal(champion: ModelVersion, error: Exception) -> dict[str, str]:
    reason = one_line(error, limit=500)
    log.error("%s version %s cannot be served and is refused: %s", champion.name, champion.version, reason)
    return {"version": champion.version, "reason": reason}
