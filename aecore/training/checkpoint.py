"""Checkpoints to resume from, and finished models to serve: folders of safetensors and JSON, nothing pickled.

A checkpoint `step-00001250/` holds model.safetensors, optimizer.safetensors, config.json and, written last,
progress.json with the sha256 of the others. Without a progress.json that matches, a folder counts as absent: a
checkpoint is complete or does not exist, on a disk and on S3. A second one of a step is `step-00001250-2/`: the first
stays until that is complete. A model folder holds model.safetensors, latents.safetensors (statistics of the z-points),
points.safetensors (z-points of real images, if the recipe asks for them), metrics.json and, written last, config.json.
"""

import json
import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from aecore.config import Recipe, stored_recipe
from aecore.data.io import read_bytes, read_json, sha256, write_atomic, write_json
from aecore.errors import one_line
from aecore.latent.points import StoredPoints
from aecore.model.autoencoder import NETWORK_VERSION, Autoencoder, ImageShape, build_model

T = TypeVar("T")
log = logging.getLogger(__name__)
POINTS_FILE = "points.safetensors"
STEP_FOLDER = re.compile(r"step-(\d+)(?:-(\d+))?")
CHECKPOINT_FILES = ("config.json", "model.safetensors", "optimizer.safetensors")
MAX_BACKLOG = 8  # epochs that a training may be ahead of a slow storage; they are lost if it is killed
RETRY_S, RETRY_PAUSE_S = 60.0, 2.0  # retries of a failing storage at the end of a training


@dataclass
class TrainState:
    """The counters of a run, as progress.json stores them.

    `epochs` that are complete, optimizer steps (`step`) and images (`samples`) of the whole run, and the open epoch's
    `sums` over all workers' images at the last `loop.gather_sums`, by the names of `loop.EPOCH_SUMS`; empty when no
    epoch is open. `streamed`: its images come from a stream, in another order than the planned one.
    """

    epochs: int = 0
    step: int = 0
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    streamed: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint, copied to the host: later training steps do not change it.

    `state` is a TrainState as a dict. `valid_loss` is that of the epoch that ends here, nan within an epoch.
    """

    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    valid_loss: float

    @property
    def name(self) -> str:
        return f"step-{self.state['step']:08d}"


def take_snapshot(
    model: Autoencoder, optimizer: torch.optim.Optimizer, recipe: Recipe, state: TrainState,
    valid_loss: float = math.nan,
) -> Snapshot:  # fmt: skip
    """Copy the training's state to the host: the only part of saving that blocks the training."""
    config = _config(model, recipe)
    return Snapshot(config, _copy_to_host(model.state_dict()), _flatten_optimizer(optimizer), asdict(state), valid_loss)


def write_checkpoint(fs: pafs.FileSystem, root: str, snapshot: Snapshot) -> str:
    """Write `root/step-NNNNNNNN` completely or not at all and return its path. Raises OSError if the storage fails.

    A complete one of this step, as of the epoch that a stream repeats, is not overwritten: a number follows its name.
    """
    step, path = snapshot.state["step"], f"{root}/{snapshot.name}"
    if newest := next((written for written in list_checkpoints(fs, root) if _step(written) == step), ""):
        is_complete = fs.get_file_info(f"{newest}/progress.json").type is not pafs.FileType.NotFound
        path = f"{path}-{_order(newest)[1] + 1}" if is_complete else newest
    contents = {
        "config.json": json.dumps(snapshot.config, indent=1).encode(),
        "model.safetensors": save_tensors(_contiguous(snapshot.model)),
        "optimizer.safetensors": save_tensors(_contiguous(snapshot.optimizer)),
    }
    for name in CHECKPOINT_FILES:
        write_atomic(fs, f"{path}/{name}", contents[name])
    digests = {name: sha256(content) for name, content in contents.items()}
    loss = {"valid_loss": snapshot.valid_loss} if math.isfinite(snapshot.valid_loss) else {}
    write_json(fs, f"{path}/progress.json", snapshot.state | loss | {"sha256": digests})
    return path


def prune(fs: pafs.FileSystem, root: str, keep: int, step: int, earlier: Collection[str] = ()) -> None:
    """Delete all checkpoints but the newest `keep` complete ones and the one with the lowest validation loss.

    Of each step only the newest counts. Of those after `step`, the last one written, the `earlier` paths are deleted
    too: a stream that repeats an epoch has left them, and a resumed run would load them in place of the new ones. The
    others are of a process that has taken the run over.
    """
    valid_losses: dict[str, float] = {}  # of the complete ones up to `step`, newest first
    replaced: list[str] = []
    for path in list_checkpoints(fs, root):
        if _step(path) > step and path not in earlier:
            continue
        try:
            valid_loss = read_json(fs, f"{path}/progress.json").get("valid_loss", math.inf)
        except (FileNotFoundError, ValueError):
            fs.delete_dir(path)  # half-written
            continue
        if _step(path) > step or _step(path) in map(_step, valid_losses):
            replaced.append(path)
        else:
            valid_losses[path] = valid_loss
    best = min(valid_losses, key=valid_losses.__getitem__, default=None)  # without losses the newest
    for path in replaced + list(valid_losses)[keep:]:
        if path != best:
            fs.delete_file(f"{path}/progress.json")  # first: an interrupted deletion leaves no complete checkpoint
            fs.delete_dir(path)


class CheckpointWriter:
    """Writes checkpoints under `root` in a background thread, so that the training does not wait for the storage.

    It writes one at a time. Of the snapshots that arrive meanwhile only the newest is written. The training waits if
    epochs end so fast that MAX_BACKLOG of them have not been written. If the storage fails, it logs a warning and
    retries with the next snapshot and, in `finish`, for RETRY_S; the training does not wait for it then.
    """

    def __init__(self, fs: pafs.FileSystem, root: str, keep: int) -> None:
        self.fs, self.root, self.keep = fs, root, keep
        self._earlier = list_checkpoints(fs, root)
        self._pending: Snapshot | None = None
        self._pending_calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, "checkpoints")
        self._last_write: Future[None] | None = None
        self._is_failing = False

    def save(self, snapshot: Snapshot, before_write: Callable[[], None] | None = None) -> None:
        """Write `snapshot` soon.

        `before_write` is called first, in the background thread too, even if a newer snapshot replaces this one: it
        writes what must exist once this or a later checkpoint exists. Raises what an earlier write raised, except
        OSError.
        """
        if self._last_write and self._last_write.done():
            self._last_write.result()  # not an OSError: a retry would fail again
        with self._lock:
            self._pending_calls += [before_write] if before_write else []
            self._pending = snapshot
        self._last_write = self._executor.submit(self._try_write)
        if len(self._pending_calls) > MAX_BACKLOG and not self._is_failing:
            wait([self._last_write])

    def finish(self) -> None:
        """Wait until everything is written and close the writer. Raises OSError if the storage keeps failing."""
        self._executor.shutdown()
        retry_storage(self._write, "save the last checkpoint")

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._executor.shutdown()  # waits for the write in progress

    def _try_write(self) -> None:
        try:
            self._write()
            self._is_failing = False
        except OSError as error:
            self._is_failing = True
            log.warning("cannot write a checkpoint: %s; the training continues", one_line(error))

    def _write(self) -> None:
        """Write the pending snapshot. Raises OSError; the snapshot then stays pending, unless a newer one is."""
        with self._lock:
            snapshot, self._pending = self._pending, None
            num_calls = len(self._pending_calls)  # a call that arrives meanwhile belongs to a later snapshot
        try:
            for _ in range(num_calls):
                self._pending_calls[0]()
                self._pending_calls.popleft()
            if snapshot:
                write_checkpoint(self.fs, self.root, snapshot)
        except BaseException:
            with self._lock:
                self._pending = self._pending or snapshot
            raise
        if snapshot:
            prune(self.fs, self.root, self.keep, snapshot.state["step"], self._earlier)


def retry_storage(call: Callable[[], T], action: str) -> T:
    """Return `call()`; call it again for RETRY_S while it raises OSError; the last OSError is raised.

    `action` names the call in the log: "cannot ACTION yet".
    """
    deadline = time.monotonic() + RETRY_S
    while True:
        try:
            return call()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            remaining_s = deadline - time.monotonic()
            log.warning("cannot %s yet: %s; retrying for %.0f s", action, one_line(error), remaining_s)
        time.sleep(RETRY_PAUSE_S)


def list_checkpoints(fs: pafs.FileSystem, root: str) -> list[str]:
    """Return the paths of the checkpoint folders under `root`, complete or not, newest first."""
    entries = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted((entry.path for entry in entries if STEP_FOLDER.fullmatch(entry.base_name)), key=_order, reverse=True)


def _order(path: str) -> tuple[int, int]:
    """Return the step of a checkpoint's folder, and which one of this step it is, from 1 on."""
    match = STEP_FOLDER.fullmatch(path.rpartition("/")[2])
    assert match
    return int(match[1]), int(match[2] or 1)


def _step(path: str) -> int:
    return _order(path)[0]


def saved_epochs(fs: pafs.FileSystem, root: str) -> int:
    """Return the number of epochs in the newest complete checkpoint under `root`, 0 if there is none."""
    return _newest_progress(fs, root).get("epochs", 0)


def begun_epochs(fs: pafs.FileSystem, root: str) -> int:
    """Return `saved_epochs`, plus 1 if the checkpoint was written within an epoch."""
    progress = _newest_progress(fs, root)
    return progress.get("epochs", 0) + bool(progress.get("sums", {}).get("count"))


def _newest_progress(fs: pafs.FileSystem, root: str) -> dict[str, Any]:
    for path in list_checkpoints(fs, root):
        with suppress(FileNotFoundError):
            return read_json(fs, f"{path}/progress.json")
    return {}


def load_checkpoint(fs: pafs.FileSystem, root: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load the newest complete checkpoint under `root` into `model` and `optimizer` and return its state.

    Returns a new TrainState if there is none. A damaged or half-written checkpoint is skipped with a warning. Raises
    OSError if the storage fails, which does not mean that the checkpoint is damaged, and ValueError if another version
    of the network wrote it.
    """
    for _, state, contents in _complete_checkpoints(fs, root):
        model.load_state_dict(load_tensors(contents["model.safetensors"]))
        _load_optimizer(optimizer, load_tensors(contents["optimizer.safetensors"]))
        return state
    return TrainState()


def load_unfinished_model(fs: pafs.FileSystem, root: str) -> Autoencoder:
    """Return the model of the newest complete checkpoint under `root`, on the CPU, in eval mode, without gradients.

    Raises FileNotFoundError if there is none, else as `load_checkpoint`.
    """
    for config, _, contents in _complete_checkpoints(fs, root):
        model = build_model(stored_recipe(config["recipe"]), ImageShape(**config["image"]))
        model.load_state_dict(load_tensors(contents["model.safetensors"]))
        return model.eval().requires_grad_(False)
    raise FileNotFoundError(f"no complete checkpoint under {root}")


def _complete_checkpoints(
    fs: pafs.FileSystem, root: str
) -> Iterator[tuple[dict[str, Any], TrainState, dict[str, bytes]]]:
    """Yield config, state and files of each complete checkpoint under `root`, newest first; warn of a damaged one."""
    for path in list_checkpoints(fs, root):
        try:
            progress = {"streamed": False} | read_json(fs, f"{path}/progress.json")  # 0.2.0 did not store it
            contents = {name: read_bytes(fs, f"{path}/{name}") for name in CHECKPOINT_FILES}
            if any(sha256(content) != progress["sha256"][name] for name, content in contents.items()):
                raise ValueError("the sha256 of a file differs")
            state = TrainState(**{key: progress[key] for key in TrainState.__dataclass_fields__})
        except (FileNotFoundError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); falling back to the one before", path, error)
            continue
        config = json.loads(contents["config.json"])
        _check_network_version(config, path)
        yield config, state, contents


def save_model(
    fs: pafs.FileSystem, path: str, model: Autoencoder, recipe: Recipe, latents: dict[str, Tensor],
    metrics: dict[str, float], points: StoredPoints | None = None,
) -> None:  # fmt: skip
    """Write a model folder; config.json comes last, so that a folder with one is complete."""
    for name in ("config.json", POINTS_FILE):  # of this run with fewer epochs or other points
        if fs.get_file_info(f"{path}/{name}").type is not pafs.FileType.NotFound:
            fs.delete_file(f"{path}/{name}")
    write_atomic(fs, f"{path}/model.safetensors", save_tensors(_contiguous(_copy_to_host(model.state_dict()))))
    write_atomic(fs, f"{path}/latents.safetensors", save_tensors(_contiguous(_copy_to_host(latents))))
    if points:
        write_atomic(fs, f"{path}/{POINTS_FILE}", save_tensors(_contiguous(points.to_tensors())))
    write_json(fs, f"{path}/metrics.json", metrics)
    write_json(fs, f"{path}/config.json", _config(model, recipe))


@dataclass(frozen=True)
class SavedModel:
    """The content of a model folder: `latents` are the LatentStats that the samplers take, `points` may be None."""

    model: Autoencoder
    recipe: Recipe
    latents: dict[str, Tensor]
    metrics: dict[str, float]
    points: StoredPoints | None = None


def load_model(fs: pafs.FileSystem, path: str, device: torch.device | str = "cpu") -> SavedModel:
    """Load a model folder, with the model on `device`, in eval mode and without gradients.

    Raises FileNotFoundError if there is no config.json, and ValueError if another file is missing, a file is damaged,
    the weights do not fit the config or another version of the network wrote them.
    """
    config = read_json(fs, f"{path}/config.json")
    try:
        sections, shape = config["recipe"], ImageShape(**config["image"])
        _check_network_version(config, path)
        recipe = stored_recipe(sections)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}/config.json is not the config of a model: {one_line(error)}") from error
    model = build_model(recipe, shape)
    try:
        model.load_state_dict(_read_tensors(fs, f"{path}/model.safetensors"))
        latents, metrics = _read_tensors(fs, f"{path}/latents.safetensors"), read_json(fs, f"{path}/metrics.json")
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its config: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise ValueError(f"the model in {path} lacks a file: {one_line(error)}") from error
    model = model.eval().requires_grad_(False).to(device)
    return SavedModel(model, recipe, latents, metrics, _load_points(fs, f"{path}/{POINTS_FILE}"))


def _load_points(fs: pafs.FileSystem, path: str) -> StoredPoints | None:
    try:
        return StoredPoints.from_tensors(_read_tensors(fs, path))
    except FileNotFoundError:
        return None


def _read_tensors(fs: pafs.FileSystem, path: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises FileNotFoundError, or ValueError when it is damaged."""
    try:
        return load_tensors(read_bytes(fs, path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}; copy the model again, or train it again") from error


def _config(model: Autoencoder, recipe: Recipe) -> dict[str, Any]:
    return {"network": NETWORK_VERSION, "recipe": recipe.model_dump(mode="json"), "image": asdict(model.image)}


def _check_network_version(config: dict[str, Any], path: str) -> None:
    # Weights of another version may have the same shapes: loading them would raise nothing and decode wrongly.
    if (version := config.get("network", 1)) != NETWORK_VERSION:
        raise ValueError(
            f"{path} holds weights of network version {version}, this zpoint has version {NETWORK_VERSION}: "
            "train the model again"
        )


def _copy_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    # "INDEX.KEY" to tensor. Adam's state is tensors alone; its options come from the recipe.
    state = optimizer.state_dict()["state"]
    return _copy_to_host({f"{i}.{key}": tensor for i, moments in state.items() for key, tensor in moments.items()})


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    # Fused Adam walks parameter and moments in memory order: both need the same memory format (channels last).
    for parameter, moments in optimizer.state.items():
        for key, tensor in moments.items():
            if tensor.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(tensor)
