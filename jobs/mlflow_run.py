"""The MLflow run of a training, which its driver creates and ends, and to which it logs each epoch of the run's folder.

MLflow's failures are logged and stop no training: the folder is complete without it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow.fs as pafs

from aecore.config import flatten_keys
from aecore.data.io import read_bytes, read_json, write_json
from cluster import tracking
from jobs.run_store import RunStore, delete_folder, epoch_path

SYNC_S = 2.0  # between two checks for a finished epoch
MAX_SYNC_S = 60.0  # the longest wait after MLflow has failed
DEVICES_TAG = "zpoint.devices"


class MlflowRun:
    """The MLflow run of the folder `store`, whose `run_id` is set once MLflow has the run."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.synced_epoch = -1  # the last epoch that MLflow has, -1 until its run is open

    @property
    def run_id(self) -> str:
        """Return the id of the MLflow run, '' until MLflow has created it."""
        return self.store.run_id

    def start(self) -> None:
        """Set the MLflow run to RUNNING; create it if there is none, restore a deleted one. Log failures."""
        tracking.best_effort("open the run", self._open)
        if self.synced_epoch >= 0:
            tracking.set_status(self.run_id, "RUNNING")

    def _open(self) -> None:
        if not self.run_id or not tracking.reopen_run(self.run_id):
            fs, root = self.store.folder
            run = read_json(fs, f"{root}/run.json")
            recipe = {key: value for key, value in run["recipe"].items() if key != "search"}
            self.store.run_id = tracking.create_run(self.store.name, flatten_keys(recipe), run["tags"])
            if images := run.get("images"):  # earlier versions did not store them
                tracking.log_dataset(self.run_id, images["dataset"], recipe["data"]["uri"], run["dataset"], images)
            write_json(fs, f"{root}/run.json", run | {"run_id": self.run_id})
        self.synced_epoch = int(tracking.get_run(self.run_id).data.tags.get("zpoint.epoch", 0))

    def sync(self, *, warn: bool = True) -> bool:
        """Log the epochs that MLflow lacks, one point each however often this is called; return if it has all now.

        A failure is logged if `warn`, and raises nothing.
        """
        task = "take the epochs' metrics; they are logged when it answers, or by the same command again"
        return tracking.best_effort(task, self.log_epochs, False, warn=warn)

    def log_epochs(self) -> bool:
        """Log the epochs that MLflow lacks. Raises what MLflow raises."""
        if self.synced_epoch < 0:
            self._open()
        fs, root = self.store.folder
        client = tracking.client()
        for epoch, epoch_file in self.store.epoch_files(after=self.synced_epoch).items():
            time_ms = fs.get_file_info(f"{root}/{epoch_path(epoch, 'json')}").mtime_ns // 1_000_000
            tracking.log_metrics(self.run_id, epoch_file["metrics"], epoch, time_ms)
            for folder, extension in (("epochs", "json"), ("pictures", "png")):
                path = f"{root}/{epoch_path(epoch, extension)}"
                with suppress(FileNotFoundError):  # most epochs have no images
                    tracking.log_files(self.run_id, {path.rpartition("/")[2]: read_bytes(fs, path)}, folder)
            if devices := epoch_file.get("devices"):  # earlier versions did not store them
                client.set_tag(self.run_id, DEVICES_TAG, devices)
            client.set_tag(self.run_id, "zpoint.epoch", str(epoch))
            self.synced_epoch = epoch
        return True

    @contextmanager
    def log_training(self) -> Iterator[None]:
        """Log the training in the block to MLflow, and end the run there as FINISHED, FAILED or KILLED.

        A user's mistake, a ValueError, that kept the training from starting deletes the run.
        """
        try:
            with self.background_sync():
                yield
        except ValueError:
            self.discard()
            raise
        except BaseException as error:
            self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.end("FINISHED")

    @contextmanager
    def background_sync(self) -> Iterator[None]:
        """Log each epoch to MLflow from a thread soon after it is written; the training never waits for MLflow."""
        stop = threading.Event()

        def sync() -> None:
            if stop.wait(SYNC_S):  # at once, MLflow's import would delay that of Ray
                return
            self.start()
            seconds, synced = SYNC_S, self.synced_epoch >= 0
            while not stop.wait(seconds):
                synced = self.sync(warn=synced)  # of a row of failures only the first is logged
                seconds = SYNC_S if synced else min(2 * seconds, MAX_SYNC_S)

        thread = threading.Thread(target=sync, name="mlflow-sync", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def end(self, status: str) -> None:
        """Log the last epochs and end the MLflow run as FINISHED, FAILED or KILLED."""
        if self.sync():
            tracking.set_status(self.run_id, status)

    def discard(self) -> None:
        """Delete the run, also in MLflow, if it has not begun; end one that has as FAILED."""
        fs, root = self.store.folder
        traces = fs.get_file_info([f"{root}/{name}" for name in ("checkpoints", "epochs", "model")])
        if any(trace.type is not pafs.FileType.NotFound for trace in traces):
            return self.end("FAILED")
        delete_folder(fs, root)
        tracking.delete_run(self.run_id)
