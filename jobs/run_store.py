"""The folder of a run, `<store>/runs/<name>/`: the source of truth about a training.

`jobs.mlflow_run` copies it to MLflow.

run.json               the recipe, the dataset's digest and summary, the tags and id of the MLflow run
checkpoints/           see aecore.training.checkpoint
epochs/epoch-003.json  metrics of an epoch, KL per latent dimension, devices; about five have images, epoch-003.png
model/                 the finished model; without it the run resumes from its last checkpoint
"""

import re
import secrets
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.config import Recipe, stored_recipe
from aecore.data.io import read_json, write_atomic, write_json
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.lineage import lineage_tags
from cluster.lock import hold_lock, is_locked
from cluster.settings import settings
from cluster.storage import open_uri

if TYPE_CHECKING:
    import torch

    from aecore.training.checkpoint import SavedModel

MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class RunStore:
    """One run's folder, passed to every worker; `run_id` is '' until MLflow has created the run."""

    name: str
    uri: str
    run_id: str

    @property
    def folder(self) -> tuple[pafs.FileSystem, str]:
        """The file system and the path of the run's folder."""
        return open_uri(self.uri)

    def check_visible(self) -> None:
        """Raise ValueError if this process cannot see the run's folder, as on a node with another disk."""
        if not self.exists():
            raise ValueError(f"a worker does not see the run at {self.uri}: set ZPOINT_STORE to what all nodes share")

    def save_epoch(
        self, epoch: int, metrics: dict[str, float], kl_per_dim: list[float], png: bytes | None, devices: str
    ) -> None:
        """Write an epoch's metrics, KL of each latent dimension (nats), images, if any, and what it was trained on.

        An epoch that is trained again keeps its first files, since MLflow may have them.
        """
        fs, root = self.folder
        path = f"{root}/{epoch_path(epoch, 'json')}"
        if fs.get_file_info(path).type is pafs.FileType.NotFound:
            if png:
                write_atomic(fs, f"{root}/{epoch_path(epoch, 'png')}", png)
            write_json(fs, path, {"metrics": metrics, "kl_components": kl_per_dim, "devices": devices})

    def epochs(self, after: int = 0) -> dict[int, dict[str, float]]:
        """Return the metrics of each epoch later than `after`, in order."""
        return {epoch: file["metrics"] for epoch, file in self.epoch_files(after).items()}

    def last_metric(self, name: str, before: int) -> float:
        """Return the metric of the epoch before epoch `before`, 0 if there is none or it has no such metric."""
        try:
            return self.epoch_metrics(before - 1).get(name, 0.0)
        except FileNotFoundError:
            return 0.0

    def last_epoch(self) -> int:
        """Return the last epoch that has ended, 0 if none has."""
        return max(self._epoch_paths(), default=0)

    def epoch_files(self, after: int) -> dict[int, dict[str, Any]]:
        """Return the content of the JSON file of each epoch later than `after`, in order."""
        fs, _ = self.folder
        return {epoch: read_json(fs, path) for epoch, path in self._epoch_paths().items() if epoch > after}

    def _epoch_paths(self) -> dict[int, str]:
        fs, root = self.folder
        files = fs.get_file_info(pafs.FileSelector(f"{root}/epochs", allow_not_found=True))
        paths = {int(file.base_name[6:-5]): file.path for file in files if file.path.endswith(".json")}
        return dict(sorted(paths.items()))

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        """Return the metrics of one epoch. Raises FileNotFoundError if it has not ended yet."""
        fs, root = self.folder
        return read_json(fs, f"{root}/{epoch_path(epoch, 'json')}")["metrics"]

    def exists(self) -> bool:
        """Return if the store has the run."""
        fs, root = self.folder
        return fs.get_file_info(f"{root}/run.json").type is not pafs.FileType.NotFound

    def finished(self, recipe: Recipe | None = None) -> bool:
        """Return if the run has the model of `recipe`, its epochs and points; by default that of run.json's epochs."""
        fs, root = self.folder
        try:
            epochs = read_json(fs, f"{root}/run.json")["recipe"]["optim"]["epochs"]
            model_recipe = stored_recipe(read_json(fs, f"{root}/model/config.json")["recipe"])
        except (FileNotFoundError, NotADirectoryError):
            return False
        if recipe is None:
            return model_recipe.optim.epochs == epochs
        return (model_recipe.optim.epochs, model_recipe.points) == (recipe.optim.epochs, recipe.points)

    def model_epochs(self) -> int:
        """Return the number of epochs of the run's model, 0 if it has none or its deletion has begun."""
        if not self.exists():
            return 0
        fs, root = self.folder
        try:
            return read_json(fs, f"{root}/model/config.json")["recipe"]["optim"]["epochs"]
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def check_finished(self) -> None:
        """Raise ValueError unless the run has finished."""
        if not self.finished():
            raise ValueError(f"run '{self.name}' has not finished: repeat the command that trains it, to resume it")

    def load_model(self, device: "torch.device | str" = "cpu") -> "SavedModel":
        """Load the model of a finished run. Raises as `aecore.training.checkpoint.load_model`."""
        from aecore.training.checkpoint import load_model  # here, since torch is slow to import

        fs, root = self.folder
        return load_model(fs, f"{root}/model", device)


def epoch_path(epoch: int, extension: str) -> str:
    """Return the path of an epoch's file in the folder of its run; `extension` is json or png."""
    return f"epochs/epoch-{epoch:03d}.{extension}"


def run_name(recipe: Recipe, stem: str, manifest: Manifest) -> str:
    """Return the name of the run: the recipe's, else `stem` and a digest of recipe and dataset."""
    return recipe.name or f"{stem}-{recipe.digest(manifest.digest)}"


def stored_run(name: str) -> RunStore:
    """Return the run `name` of the current store, which need not exist."""
    return RunStore(name, f"{settings().runs_uri}/{name}", run_id="")


def lock_run(name: str) -> AbstractContextManager[None]:
    """Return a context in which no other process trains or deletes run `name`.

    The driver of a training holds it, never a worker: Ray may replace workers at any time. Raises LockedError.
    """
    return hold_lock(_lock_uri(settings().store, name), f"run '{name}' is being trained", "give another name=...")


def is_trained_now(uri: str) -> bool:
    """Return True if a process trains the run in the folder `uri`, of any store; also if the store does not say."""
    store, _, name = uri.rpartition("/runs/")
    return is_locked(_lock_uri(store, name))


def _lock_uri(store: str, name: str) -> str:
    return f"{store}/locks/run-{name}"


def open_run(recipe: Recipe, stem: str, manifest: Manifest, *, fresh: bool = False) -> RunStore:
    """Return the run of `recipe` on `manifest`, an existing one or a new one; `fresh` deletes an existing one.

    A recipe with more epochs than the existing run continues it.

    The same command finds its run again by `run_name`. Call it in `lock_run` unless the run has finished. MLflow gets
    the run when it starts. Raises ValueError as `check_existing_run`, unless `fresh`.
    """
    name = run_name(recipe, stem, manifest)
    uri = stored_run(name).uri
    fs, root = open_uri(uri)
    if fresh:
        with suppress(FileNotFoundError):
            fs.delete_file(f"{root}/run.json")  # first: what a kill leaves of the folder is no run
    run = check_existing_run(recipe, name, manifest)
    if run is None:
        delete_folder(fs, root)
        # By its key an MLflow run is found again that was created just before a kill, and so is not in run.json.
        tags = {"zpoint.run": name, "zpoint.uri": uri, "zpoint.dataset": manifest.digest, "zpoint.recipe": stem}
        tags |= lineage_tags() | {tracking.KEY_TAG: secrets.token_hex(8)}
        run = {
            "name": name, "digest": recipe.digest(manifest.digest), "dataset": manifest.digest, "run_id": "",
            "tags": tags, "recipe": recipe.model_dump(mode="json"), "images": manifest.summary,
        }  # fmt: skip
        write_json(fs, f"{root}/run.json", run)
    elif run["recipe"]["optim"]["epochs"] != recipe.optim.epochs:
        write_json(fs, f"{root}/run.json", run | {"recipe": recipe.model_dump(mode="json")})
        delete_folder(fs, f"{root}/study")  # measurements of the model before
    return RunStore(name, uri, run["run_id"])


def check_existing_run(recipe: Recipe, name: str, manifest: Manifest) -> dict[str, Any] | None:
    """Return what run.json holds of run `name`, None if there is no such run.

    Raises ValueError if the run is of another recipe or dataset, or has begun more epochs than `recipe` has.
    """
    run_store, epochs = stored_run(name), recipe.optim.epochs
    fs, root = run_store.folder
    try:
        run = read_json(fs, f"{root}/run.json")
    except FileNotFoundError:
        return None
    stored = stored_recipe(run["recipe"])
    if stored.digest(run["dataset"]) != recipe.digest(manifest.digest):
        raise ValueError(f"run '{name}' was made from another recipe or dataset: give another name=..., or --fresh")
    if stored.optim.epochs != epochs:
        from aecore.training.checkpoint import begun_epochs  # here, since torch delays all commands

        begun = max(run_store.last_epoch(), begun_epochs(fs, f"{root}/checkpoints"))
        if begun > epochs:
            raise ValueError(
                f"run '{name}' has begun epoch {begun}, optim.epochs={epochs} are fewer: take {begun} or more, "
                "another name=..., or --fresh"
            )
    return run


def find_run(name: str) -> RunStore:
    """Return the run with this name, MLflow id or URI `runs:/ID`. Raises ValueError if the current store has none."""
    run_store = stored_run(resolve_name(name))
    fs, root = run_store.folder
    try:
        run_store.run_id = read_json(fs, f"{root}/run.json")["run_id"]
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no run or campaign '{name}' under {settings().runs_uri}: see `zpoint runs`") from None
    return run_store


def resolve_name(name: str) -> str:
    """Return `name`, or the name of the run or campaign whose MLflow id, or URI `runs:/ID` or `runs:/ID/PATH`, it is.

    Raises ValueError with the reason if MLflow's run is not one that the current store holds.
    """
    if name.startswith("runs:/"):
        name = name.split("/")[1]
    if not MLFLOW_ID.fullmatch(name) or stored_run(name).exists():
        return name
    run = tracking.get_run(name)
    if run is None:
        raise ValueError(f"neither the store nor MLflow has a run '{name}': see `zpoint runs`")
    named = run.data.tags.get("zpoint.run")
    if named is None:
        raise ValueError(f"MLflow's run '{name}' is not one of zpoint's: see `zpoint runs`")
    uri, run_store = run.data.tags.get("zpoint.uri"), stored_run(named)
    if uri is None:  # of a campaign
        return named
    if run_store.exists():
        if (newer := find_run(named).run_id) != name:
            raise ValueError(f"run '{named}' is no longer '{name}' but '{newer}': name that id, or '{named}'")
        return named
    if uri != run_store.uri:
        raise ValueError(f"run '{named}' ({name}) is in another store: set ZPOINT_STORE={uri.rpartition('/runs/')[0]}")
    raise ValueError(f"the folder of run '{named}' ({name}), {uri}, has been deleted: train it again")


def delete_folder(fs: pafs.FileSystem, root: str) -> None:
    """Delete a folder, if it exists."""
    if fs.get_file_info(root).type is not pafs.FileType.NotFound:
        fs.delete_dir(root)
