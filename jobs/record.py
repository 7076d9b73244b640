"""A run's folder `<store>/runs/<name>/`, the one truth about a training; MLflow is told what it holds.

run.json               the recipe, the dataset's digest, the MLflow run id
checkpoints/           see aecore.checkpoint
epochs/epoch-003.json  metrics of an epoch, and its KL by component; epoch-003.png its pictures, of about ten epochs
model/                 the finished model; while it is missing the run goes on from its last checkpoint
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from aecore.config import Recipe
from aecore.files import read_bytes, read_json, write_json, write_whole
from aecore.shards import Manifest
from cluster import tracking
from cluster.settings import settings
from cluster.storage import open_uri


@dataclass(frozen=True)
class Record:
    """Where a run lies and which MLflow run it is; small, so it travels to every worker."""

    name: str
    uri: str
    run_id: str

    @property
    def place(self) -> tuple[pafs.FileSystem, str]:
        return open_uri(self.uri)

    def save_epoch(self, epoch: int, metrics: dict[str, float], components: list[float], picture: bytes | None) -> None:
        """Keep an epoch's metrics, the KL of each component of z, and its pictures as PNG where it has some."""
        fs, root = self.place
        if picture:
            write_whole(fs, f"{root}/epochs/epoch-{epoch:03d}.png", picture)
        write_json(fs, f"{root}/epochs/epoch-{epoch:03d}.json", {"metrics": metrics, "kl_components": components})

    def epochs(self) -> dict[int, dict[str, float]]:
        """Metrics by epoch, in order."""
        fs, root = self.place
        found = fs.get_file_info(pafs.FileSelector(f"{root}/epochs", allow_not_found=True))
        paths = sorted(f.path for f in found if f.path.endswith(".json"))
        return {int(path[-8:-5]): read_json(fs, path)["metrics"] for path in paths}

    def finished(self) -> bool:
        fs, root = self.place
        return fs.get_file_info(f"{root}/model/config.json").type is not pafs.FileType.NotFound

    def hand_in(self) -> None:
        """Log to MLflow what the folder holds and MLflow lacks: one point per epoch, however often it is called."""
        if self.run_id:
            tracking.attempt("take the epochs' metrics; a later epoch or run hands them in", self._hand_in)

    def _hand_in(self) -> None:
        fs, root = self.place
        client = tracking.client()
        known = int(client.get_run(self.run_id).data.tags.get("zpoint.epoch", 0))
        for epoch, metrics in self.epochs().items():
            if epoch > known:
                name = f"epoch-{epoch:03d}"
                measured = fs.get_file_info(f"{root}/epochs/{name}.json").mtime_ns // 1_000_000
                tracking.log_metrics(self.run_id, metrics, epoch, measured)
                for folder, file in (("epochs", f"{name}.json"), ("pictures", f"{name}.png")):
                    with suppress(FileNotFoundError):  # most epochs have no pictures
                        tracking.log_files(self.run_id, {file: read_bytes(fs, f"{root}/epochs/{file}")}, folder)
                client.set_tag(self.run_id, "zpoint.epoch", str(epoch))

    def close(self, status: str) -> None:
        """Hand in the last epochs and end the MLflow run as FINISHED, FAILED or KILLED."""
        self.hand_in()
        tracking.set_status(self.run_id, status)

    def drop(self) -> None:
        """Forget a run that a user's mistake kept from starting; one that has begun is closed as FAILED."""
        fs, root = self.place
        if fs.get_file_info(f"{root}/checkpoints").type is not pafs.FileType.NotFound:
            return self.close("FAILED")
        delete_folder(fs, root)
        tracking.forget_run(self.run_id)


def open_record(
    recipe: Recipe, stem: str, manifest: Manifest, *, fresh: bool = False, tags: dict[str, str] | None = None
) -> Record:
    """The record of the run that `recipe` on `manifest` means, new or to be gone on with.

    The name is the recipe's, else `stem` with a digest of what is trained, so the same command finds its run
    again. Raises ValueError when the name is taken by another recipe and not `fresh`.
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
    if known and known["run_id"]:
        record = Record(name, uri, known["run_id"])
        if not record.finished():
            tracking.set_status(record.run_id, "RUNNING")
        return record
    params: dict[str, Any] = dict(tracking.flatten(recipe.model_dump(mode="json", exclude={"search"})))
    labels = {"zpoint.run": name, "zpoint.uri": uri, "zpoint.dataset": manifest.digest, **(tags or {})}
    run_id = tracking.attempt("open the run", lambda: tracking.create_run(name, params, labels), "")
    content = {"name": name, "digest": digest, "dataset": manifest.digest, "run_id": run_id}
    write_json(fs, f"{root}/run.json", content | {"recipe": recipe.model_dump(mode="json")})
    return Record(name, uri, run_id)


def delete_folder(fs: pafs.FileSystem, root: str) -> None:
    if fs.get_file_info(root).type is not pafs.FileType.NotFound:
        fs.delete_dir(root)


def find_record(name: str) -> Record:
    """The record of the run `name` in the store in force. Raises ValueError when there is none."""
    uri = f"{settings().runs_uri}/{name}"
    fs, root = open_uri(uri)
    try:
        known = read_json(fs, f"{root}/run.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no run or campaign '{name}' under {settings().runs_uri}: see `zpoint runs`") from None
    return Record(name, uri, known["run_id"])
