"""Folders of weights: checkpoints to go on from, and finished models to serve.

A checkpoint `step-00001250/` holds model.safetensors, optimizer.safetensors, config.json and, written last,
progress.json with the sha256 of the others: without a fitting progress.json a folder counts as absent, so a
checkpoint is whole or not there, on a disk as on S3. A model folder holds model.safetensors, config.json,
latents.safetensors (statistics of the z-points) and metrics.json. Nothing is pickled.
"""

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from aecore.config import Recipe, check_recipe
from aecore.data.io import read_bytes, read_json, sha256, write_atomic, write_json
from aecore.errors import one_line
from aecore.model.autoencoder import NETWORK, Autoencoder, ImageShape, build_model

log = logging.getLogger(__name__)
FILES = ("config.json", "model.safetensors", "optimizer.safetensors")
PATIENCE, PAUSE = 60.0, 2.0  # seconds: how long, and how often, a storage that refuses is asked at a training's end


@dataclass
class TrainState:
    """How far a run has come: whole epochs, optimizer steps and images in all, and the open epoch's sums."""

    epochs: int = 0
    step: int = 0
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint, copied to the host: what the training does next does not change it.

    `valid_loss` of the epoch that it ends, nan within an epoch.
    """

    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]
    valid_loss: float

    @property
    def name(self) -> str:
        return f"step-{self.progress['step']:08d}"


def take_snapshot(
    model: Autoencoder, optimizer: torch.optim.Optimizer, recipe: Recipe, progress: TrainState,
    valid_loss: float = math.nan,
) -> Snapshot:  # fmt: skip
    """The state now. The only part of saving that a training waits for."""
    config = _config(model, recipe)
    return Snapshot(config, _on_host(model.state_dict()), _flatten_optimizer(optimizer), asdict(progress), valid_loss)


def write_checkpoint(fs: pafs.FileSystem, root: str, snapshot: Snapshot) -> str:
    """Write `root/step-NNNNNNNN`, whole or not at all; gives its path. Raises OSError when the storage refuses."""
    path = f"{root}/{snapshot.name}"
    contents = {
        "config.json": json.dumps(snapshot.config, indent=1).encode(),
        "model.safetensors": save_tensors(_packed(snapshot.model)),
        "optimizer.safetensors": save_tensors(_packed(snapshot.optimizer)),
    }
    for name in FILES:
        write_atomic(fs, f"{path}/{name}", contents[name])
    digests = {name: sha256(data) for name, data in contents.items()}
    loss = {"valid_loss": snapshot.valid_loss} if math.isfinite(snapshot.valid_loss) else {}
    write_json(fs, f"{path}/progress.json", snapshot.progress | loss | {"sha256": digests})
    return path


def prune(fs: pafs.FileSystem, root: str, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints and, of all, the one with the lowest validation loss."""
    whole: dict[str, float] = {}
    for path in list_checkpoints(fs, root):
        try:
            whole[path] = read_json(fs, f"{path}/progress.json").get("valid_loss", math.inf)
        except (FileNotFoundError, ValueError):
            fs.delete_dir(path)  # half-written
    best = min(whole, key=whole.__getitem__, default=None)  # the newest of them where none has a loss
    for path in list(whole)[keep:]:
        if path != best:
            fs.delete_file(f"{path}/progress.json")  # first: a kill in between leaves none that looks whole
            fs.delete_dir(path)


class CheckpointWriter:
    """Writes checkpoints under `root` in a thread of its own: the training waits for no storage.

    One is written at a time; of those that come meanwhile the newest waits. What the storage refuses is told in a
    warning and tried again with the next one and, at the end, for `PATIENCE` seconds.
    """

    def __init__(self, fs: pafs.FileSystem, root: str, keep: int) -> None:
        self.fs, self.root, self.keep = fs, root, keep
        self._waiting: Snapshot | None = None
        self._before: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._job: Future[None] | None = None

    def save(self, snapshot: Snapshot, before: Callable[[], None] | None = None) -> None:
        """Write `snapshot` soon. `before` writes what must not be missing where this checkpoint is, or a later one."""
        if self._job and self._job.done():
            self._job.result()  # raises what no patience mends
        with self._lock:
            self._before += [before] if before else []
            self._waiting = snapshot
        self._job = self._thread.submit(self._try)

    def finish(self) -> None:
        """Return when all is written; nothing can be saved after. Raises OSError when the storage goes on to refuse."""
        self._thread.shutdown()
        retry_storage(self._write, "save the last checkpoint")

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown()  # after what is being written

    def _try(self) -> None:
        try:
            self._write()
        except OSError as error:
            log.warning("no checkpoint can be written now: %s; the training goes on", one_line(error))

    def _write(self) -> None:
        """Write what waits. Raises OSError; then it waits on, unless there is something newer."""
        with self._lock:
            snapshot, self._waiting = self._waiting, None
        try:
            while self._before:
                self._before[0]()
                self._before.popleft()
            if snapshot:
                write_checkpoint(self.fs, self.root, snapshot)
        except BaseException:
            with self._lock:
                self._waiting = self._waiting or snapshot
            raise
        if snapshot:
            prune(self.fs, self.root, self.keep)


def retry_storage(call: Callable[[], None], what: str) -> None:
    """`call()`, again and again for `PATIENCE` seconds where it raises OSError; the last one is raised."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except OSError as error:
            if time.monotonic() > until:
                raise
            log.warning("cannot %s yet: %s; trying for %.0f s", what, one_line(error), until - time.monotonic())
        time.sleep(PAUSE)


def list_checkpoints(fs: pafs.FileSystem, root: str) -> list[str]:
    """Paths of the checkpoint folders under `root`, newest first, whole or not."""
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted((f.path for f in found if f.base_name.startswith("step-")), reverse=True)


def load_checkpoint(fs: pafs.FileSystem, root: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Fill `model` and `optimizer` from the newest whole checkpoint under `root`; a new Progress when there is none.

    A damaged or half-written checkpoint is passed over, with a warning, for the one before it. Raises OSError when
    the storage does not answer: that says nothing about the checkpoint; ValueError for one of another version of the
    network.
    """
    for path in list_checkpoints(fs, root):
        try:
            notes = read_json(fs, f"{path}/progress.json")
            contents = {name: read_bytes(fs, f"{path}/{name}") for name in FILES}
            if any(sha256(data) != notes["sha256"][name] for name, data in contents.items()):
                raise ValueError("a file's sha256 differs")
            progress = TrainState(**{key: notes[key] for key in TrainState.__dataclass_fields__})
        except (FileNotFoundError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); going back to the one before", path, error)
            continue
        _check_network(json.loads(contents["config.json"]), path)
        model.load_state_dict(load_tensors(contents["model.safetensors"]))
        _fill_optimizer(optimizer, load_tensors(contents["optimizer.safetensors"]))
        return progress
    return TrainState()


def save_model(
    fs: pafs.FileSystem, path: str, model: Autoencoder, recipe: Recipe, latents: dict[str, Tensor],
    metrics: dict[str, float],
) -> None:  # fmt: skip
    """Write a model folder; config.json comes last, so a folder with one is whole."""
    write_atomic(fs, f"{path}/model.safetensors", save_tensors(_packed(_on_host(model.state_dict()))))
    write_atomic(fs, f"{path}/latents.safetensors", save_tensors(_packed(_on_host(latents))))
    write_json(fs, f"{path}/metrics.json", metrics)
    write_json(fs, f"{path}/config.json", _config(model, recipe))


@dataclass(frozen=True)
class SavedModel:
    model: Autoencoder
    recipe: Recipe
    latents: dict[str, Tensor]
    metrics: dict[str, float]


def load_model(fs: pafs.FileSystem, path: str, device: torch.device | str = "cpu") -> SavedModel:
    """The model of a model folder, in eval mode on `device`, rebuilt from its config and safetensors alone.

    Raises FileNotFoundError when a file is missing, ValueError when weights and config do not fit together or another
    version of the network wrote them.
    """
    config = read_json(fs, f"{path}/config.json")
    _check_network(config, path)
    recipe = check_recipe(config["recipe"])
    model = build_model(recipe, ImageShape(**config["image"]))
    try:
        model.load_state_dict(load_tensors(read_bytes(fs, f"{path}/model.safetensors")))
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its config: {error}") from error
    return SavedModel(
        model=model.eval().requires_grad_(False).to(device),
        recipe=recipe,
        latents=load_tensors(read_bytes(fs, f"{path}/latents.safetensors")),
        metrics=read_json(fs, f"{path}/metrics.json"),
    )


def _config(model: Autoencoder, recipe: Recipe) -> dict[str, Any]:
    return {"network": NETWORK, "recipe": recipe.model_dump(mode="json"), "image": asdict(model.image)}


def _check_network(config: dict[str, Any], path: str) -> None:
    # The weights would fit, and mean something else.
    if (network := config.get("network", 1)) != NETWORK:
        raise ValueError(
            f"{path} holds weights of the network's version {network}, this zpoint has {NETWORK}: train it again"
        )


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def _packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors.items()}


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    # Adam's state is tensors per parameter; its options come from the recipe.
    state = optimizer.state_dict()["state"]
    return _on_host({f"{i}.{key}": value for i, part in state.items() for key, value in part.items()})


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    # Fused Adam walks parameter and moments in memory order: they must be laid out alike (channels last).
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)
