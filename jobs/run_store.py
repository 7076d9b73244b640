"""A run's folder `<store>/runs/<name>/`, the one truth about a training; MLflow is told what it holds.

run.json               the recipe, the dataset's digest, the tags and id of the MLflow run
checkpoints/           see aecore.training.checkpoint
epochs/epoch-003.json  metrics of an epoch, and its KL by component; epoch-003.png its pictures, of about five epochs
model/                 the finished model; while it is missing the run goes on from its last checkpoint
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow.fs as pafs

from aecore.config import Recipe
from aecore.data.io import read_bytes, read_json, write_atomic, write_json
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.settings import settings
from cluster.storage import open_uri

HAND_IN_SECONDS, HAND_IN_SLOWEST = 2.0, 60.0  # between two looks for a finished epoch; where MLflow does not answer


@dataclass
class RunStore:
    """Where a run lies and which MLflow run it is ('' while MLflow has not answered); it travels to every worker."""

    name: str
    uri: str
    run_id: str
    handed_in: int = -1  # the last epoch that this process knows to be in MLflow

    @property
    def place(self) -> tuple[pafs.FileSystem, str]:
        return open_uri(self.uri)

    def check_seen(self) -> None:
        """Raise ValueError where this process does not see the run's folder: a node with another disk."""
        fs, root = self.place
        if fs.get_file_info(f"{root}/run.json").type is pafs.FileType.NotFound:
            raise ValueError(f"a worker does not see the run at {self.uri}: set ZPOINT_STORE to what all nodes share")

    def save_epoch(self, epoch: int, metrics: dict[str, float], components: list[float], picture: bytes | None) -> None:
        """Keep an epoch's metrics, the KL of each component of z, and its pictures as PNG where it has some.

        They stay as they are when the epoch is trained again, for MLflow may have them.
        """
        fs, root = self.place
        path = f"{root}/epochs/epoch-{epoch:03d}"
        if fs.get_file_info(f"{path}.json").type is pafs.FileType.NotFound:
            if picture:
                write_atomic(fs, f"{path}.png", picture)
            write_json(fs, f"{path}.json", {"metrics": metrics, "kl_components": components})

    def epochs(self, after: int = 0) -> dict[int, dict[str, float]]:
        """Metrics by epoch, in order, of the epochs `after` this one."""
        fs, root = self.place
        found = fs.get_file_info(pafs.FileSelector(f"{root}/epochs", allow_not_found=True))
        paths = {int(f.base_name[6:-5]): f.path for f in found if f.path.endswith(".json")}
        return {epoch: read_json(fs, paths[epoch])["metrics"] for epoch in sorted(paths) if epoch > after}

    def finished(self) -> bool:
        fs, root = self.place
        return fs.get_file_info(f"{root}/model/config.json").type is not pafs.FileType.NotFound

    def begin(self) -> None:
        """Have MLflow show the run as running, opened there first if need be."""
        if self.run_id:
            tracking.set_status(self.run_id, "RUNNING")
        else:
            self.ensure_mlflow_run()

    def ensure_mlflow_run(self, *, tell: bool = True) -> None:
        """Open the MLflow run that run.json describes, unless there is one."""
        if not self.run_id:
            self.run_id = tracking.best_effort("open the run", self._ensure_mlflow_run, "", tell=tell)

    def _ensure_mlflow_run(self) -> str:
        fs, root = self.place
        known = read_json(fs, f"{root}/run.json")
        recipe = {key: value for key, value in known["recipe"].items() if key != "search"}
        run_id = tracking.create_run(self.name, dict(tracking.flatten(recipe)), known["tags"])
        write_json(fs, f"{root}/run.json", known | {"run_id": run_id})
        return run_id

    def sync_to_mlflow(self, *, tell: bool = True) -> bool:
        """Log to MLflow what the folder holds and MLflow lacks: one point per epoch, however often it is called.

        Whether MLflow has it all now; with `tell`, a failure is told in a warning.
        """
        self.ensure_mlflow_run(tell=tell)
        what = "take the epochs' metrics; they are handed in when it answers, or by this command once more"
        return bool(self.run_id) and tracking.best_effort(what, self._sync_to_mlflow, False, tell=tell)

    def _sync_to_mlflow(self) -> bool:
        fs, root = self.place
        client = tracking.client()
        if self.handed_in < 0:
            self.handed_in = int(client.get_run(self.run_id).data.tags.get("zpoint.epoch", 0))
        for epoch, metrics in self.epochs(after=self.handed_in).items():
            name = f"epoch-{epoch:03d}"
            measured = fs.get_file_info(f"{root}/epochs/{name}.json").mtime_ns // 1_000_000
            tracking.log_metrics(self.run_id, metrics, epoch, measured)
            for folder, file in (("epochs", f"{name}.json"), ("pictures", f"{name}.png")):
                with suppress(FileNotFoundError):  # most epochs have no pictures
                    tracking.log_files(self.run_id, {file: read_bytes(fs, f"{root}/epochs/{file}")}, folder)
            client.set_tag(self.run_id, "zpoint.epoch", str(epoch))
            self.handed_in = epoch
        return True

    @contextmanager
    def background_sync(self) -> Iterator[None]:
        """While inside, MLflow gets each epoch soon after it is written; where it is gone, nothing waits for it."""
        over = threading.Event()

        def sync_to_mlflow() -> None:
            if over.wait(HAND_IN_SECONDS):  # so much later: at once, MLflow's import would hold up that of Ray
                return
            self.begin()
            wait, tell = HAND_IN_SECONDS, bool(self.run_id)
            while not over.wait(wait):
                tell = self.sync_to_mlflow(tell=tell)
                wait = HAND_IN_SECONDS if tell else min(2 * wait, HAND_IN_SLOWEST)

        thread = threading.Thread(target=sync_to_mlflow, name="hand-in", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self, status: str) -> None:
        """Hand in the last epochs and end the MLflow run as FINISHED, FAILED or KILLED."""
        if self.sync_to_mlflow():
            tracking.set_status(self.run_id, status)

    def discard(self) -> None:
        """Forget a run that a user's mistake kept from starting; one that has begun is closed as FAILED."""
        fs, root = self.place
        if fs.get_file_info(f"{root}/checkpoints").type is not pafs.FileType.NotFound:
            return self.close("FAILED")
        delete_folder(fs, root)
        tracking.forget_run(self.run_id)


def open_run(
    recipe: Recipe, stem: str, manifest: Manifest, *, fresh: bool = False, tags: dict[str, str] | None = None
) -> RunStore:
    """The record of the run that `recipe` on `manifest` means, new or to be gone on with.

    The name is the recipe's, else `stem` with a digest of what is trained, so the same command finds its run
    again; MLflow knows of it when it has begun. Raises ValueError when the name is taken by another recipe and not
    `fresh`.
    """
    digest = recipe.digest(manifest.digest)
    name = recipe.name or f"{stem}-{digest}"
    uri = f"{settings().runs_uri}/{name}"
    fs, root = open_uri(uri)
    if fresh:
        delete_folder(fs, root)
    try:
        known = read_json(fs, f"{root}/run.json")
    except FileNotFoundError:
        known = None
    if known and known["digest"] != digest:
        raise ValueError(f"run '{name}' was made from another recipe or dataset: give another name=..., or --fresh")
    if not known:
        # The key tells an MLflow run that was opened, but not noted here, from those that were here before.
        labels = {"zpoint.run": name, "zpoint.uri": uri, "zpoint.dataset": manifest.digest, **(tags or {})}
        known = {
            "name": name, "digest": digest, "dataset": manifest.digest, "run_id": "",
            "tags": labels | {tracking.KEY: secrets.token_hex(8)}, "recipe": recipe.model_dump(mode="json"),
        }  # fmt: skip
        write_json(fs, f"{root}/run.json", known)
    return RunStore(name, uri, known["run_id"])


def delete_folder(fs: pafs.FileSystem, root: str) -> None:
    if fs.get_file_info(root).type is not pafs.FileType.NotFound:
        fs.delete_dir(root)


def find_run(name: str) -> RunStore:
    """The record of the run `name` in the store in force. Raises ValueError when there is none."""
    uri = f"{settings().runs_uri}/{name}"
    fs, root = open_uri(uri)
    try:
        known = read_json(fs, f"{root}/run.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no run or campaign '{name}' under {settings().runs_uri}: see `zpoint runs`") from None
    return RunStore(name, uri, known["run_id"])
