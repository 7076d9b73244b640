"""Training in this process, by the command that a user starts, and starts again."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch

import aecore
from aecore.config import STORED_SAMPLERS, load_recipe
from aecore.data.images import encode_image
from aecore.data.loaders import Batch, NodeLoader, StreamLoader
from aecore.data.node_cache import open_cache
from aecore.data.shards import Manifest, load_manifest, save_manifest, shard_table, write_shard
from aecore.data.shuffle import BatchSampler, World
from aecore.metrics.pixel import psnr
from aecore.model.autoencoder import build_model, to_float
from aecore.model.corruptions import make_eval_pair
from aecore.training import loop
from aecore.training.checkpoint import load_checkpoint, load_model, saved_epochs
from aecore.training.evaluate import draw_train_points
from aecore.training.loop import TrainingRun, train_step
from cluster import tracking
from cluster.progress import Bar
from cluster.settings import settings
from jobs.cli import main
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, find_run, lock_run
from jobs.train.devices import device_name
from jobs.train.worker import check_batches
from tests.jobs.runs import has_checkpoint, logged_epochs, model_bytes

SAMPLE_METRICS = {f"hog_frechet_{sampler}" for sampler in STORED_SAMPLERS}
CPU = torch.device("cpu")
METRICS = {"train_loss", "train_recon", "train_kl", "valid_loss", "valid_psnr"} | SAMPLE_METRICS


@pytest.mark.usefixtures("tracking")
def test_run_is_trained_once_and_logged_to_mlflow(zpoint, tiny: str, faces: Path):
    result = zpoint("train", tiny, f"data.uri={faces}")
    assert set(result["metrics"]) >= METRICS
    run = tracking.client().get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.z_dim"] == "3"
    assert run.data.params["data.uri"] == str(faces)
    assert run.data.tags["zpoint.dataset"] == load_manifest(pafs.LocalFileSystem(), str(faces)).digest
    assert run.data.metrics == {key: pytest.approx(value) for key, value in result["metrics"].items()}
    at_end = {"hog_frechet_diagonal", "hog_frechet_gmm"}  # of the samplers that are fitted at the end alone
    for metric in result["metrics"]:
        assert logged_epochs(result["run_id"], metric) == ([2] if metric in at_end else [1, 2]), metric
    first, last = tracking.client().get_metric_history(result["run_id"], "core_hours")
    assert 0 < first.value < last.value < 0.1
    assert run.data.tags["zpoint.devices"] == f"1 x {device_name(torch.device('cpu'))}"
    images = [file.path for file in tracking.client().list_artifacts(result["run_id"], "pictures")]
    assert images == ["pictures/epoch-001.png", "pictures/epoch-002.png"]

    repeated = zpoint("train", tiny, f"data.uri={faces}")
    assert repeated["already_finished"]
    assert (repeated["run"], repeated["run_id"]) == (result["run"], result["run_id"])
    assert repeated["metrics"] == result["metrics"]
    assert logged_epochs(result["run_id"]) == [1, 2]

    fresh = zpoint("train", tiny, "--fresh", f"data.uri={faces}")
    assert not fresh["already_finished"]
    assert fresh["run"] == result["run"]
    assert fresh["run_id"] != result["run_id"]
    assert [row["run_id"] for row in zpoint("runs")["runs"]] == [fresh["run_id"], result["run_id"]]


@pytest.mark.usefixtures("tracking")
def test_progress_says_what_follows_the_last_step(zpoint, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[tuple[bool, str]] = []
    monkeypatch.setattr(Bar, "update", lambda bar, done, total, text="": steps.append((done == total, text)))
    zpoint("train", tiny, f"data.uri={faces}")
    steps = [step for step in steps if step[1].startswith("epoch ")]
    assert [text.endswith("  evaluating the model") for _, text in steps] == [is_last for is_last, _ in steps]
    assert steps[-1][0]
    assert steps[-1][1].startswith("epoch 2/2  loss ")


@pytest.mark.usefixtures("tracking")
def test_batch_norm_model_is_saved_and_tested_in_eval_mode(zpoint, tiny: str, faces: Path):
    """In training mode the test images and those of the latent statistics would change the norms."""
    run = zpoint("train", tiny, f"data.uri={faces}", "model.norm=sync_batch")["run"]
    fs, root = find_run(run).folder
    saved = load_model(fs, f"{root}/model")
    trained = build_model(saved.recipe, saved.model.image)
    load_checkpoint(fs, f"{root}/checkpoints", trained, torch.optim.Adam(trained.parameters()))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, saved.model.state_dict()[name]), name
    cache = open_cache(settings().cache, open_dataset(str(faces)), "test")
    images = to_float(torch.from_numpy(np.array(cache)))
    reconstructions = saved.model.logits(saved.model.encode(images).mean).sigmoid()
    squared_error = (reconstructions - images).square().flatten(1).mean(1)
    assert saved.metrics["test_psnr"] == pytest.approx(float(psnr(squared_error).mean()), rel=1e-4)
    train_images = open_cache(settings().cache, open_dataset(str(faces)), "train")
    loader = NodeLoader(train_images, BatchSampler(0, 8), torch.device("cpu"))
    z = draw_train_points(saved.model, saved.recipe, loader)
    torch.testing.assert_close(saved.latents["mean"], z.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize(
    ("cache", "rows"),
    [
        ("node", [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29]),
        ("none", [0, 1, 2, 4, 5, 6, 16, 17, 18, 20, 21, 22]),  # of two of the four shards
    ],
)
def test_attributes_are_those_of_the_stored_images(
    zpoint, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, rows: list[int]
):
    monkeypatch.setattr("aecore.data.dataset.SAMPLED_SHARDS", 2)
    fs, root, splits = pafs.LocalFileSystem(), str(tmp_path / "shades"), {}
    for split, num_shards in {"train": 4, "valid": 1, "test": 1}.items():
        shades = np.arange(8 * num_shards).reshape(num_shards, 8)
        splits[split] = tuple(
            write_shard(
                fs, root, f"{split}-{index:05d}.parquet",
                shard_table(
                    pa.table({"name": [str(shade) for shade in row], "shade": row}),
                    [encode_image(np.full((16, 16, 3), 8 * shade, np.uint8), "png") for shade in row],
                ),
            )
            for index, row in enumerate(shades)
        )  # fmt: skip
    manifest = Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits=splits)
    save_manifest(fs, root, manifest)
    argv = (f"data.uri={root}", f"data.cache={cache}", "points.images=14", "name=shades", "optim.epochs=1")
    zpoint("train", tiny, *argv)
    model = aecore.load(find_run("shades").uri)
    assert model.points is not None
    assert model.points.attributes["shade"].tolist() == [*rows, 0, 4]
    means = [model.points.thumbnail(row).mean() / 8 for row in range(14)]
    assert means == pytest.approx([*rows, 0, 4], abs=0.5)
    assert "direction.shade" in model.latents


@pytest.mark.usefixtures("tracking")
def test_points_of_training_and_test_images_are_stored_with_the_model(zpoint, tiny: str, faces: Path):
    argv = ("train", tiny, f"data.uri={faces}", "optim.epochs=1", "task.kind=denoise", "name=points")
    zpoint(*argv, "points.images=40")
    model = aecore.load(find_run("points").uri)
    assert model.points is not None
    assert model.points.split.tolist() == [0] * 32 + [2] * 8
    dataset = open_dataset(str(faces))
    for split, rows in (("train", slice(32)), ("test", slice(32, 40))):
        images = torch.from_numpy(dataset.images(split, {"train": 32, "test": 8}[split]))
        thumbnails = [model.points.thumbnail(row) for row in range(40)[rows]]
        assert np.abs(np.stack(thumbnails).astype(int) - images.numpy()).mean() < 12  # WebP
        corrupted = make_eval_pair(model.recipe, Batch.whole(images), 0)[0]
        expected = model.saved.model.encode(corrupted).mean
        torch.testing.assert_close(model.points.z[rows], expected, rtol=1e-3, atol=1e-4)
    assert "points" not in {path.stem for path in Path(find_run("points").uri, "checkpoints").rglob("*")}
    zpoint(*argv, "points.images=0", "optim.epochs=2")  # continues the run
    assert aecore.load(find_run("points").uri).points is None


@pytest.mark.usefixtures("trained_runs")
def test_points_of_a_finished_run_are_changed_without_another_training(zpoint, tiny: str, faces: Path):
    argv, weights = ("train", tiny, f"data.uri={faces}", "name=a"), model_bytes("a")
    assert aecore.load(find_run("a").uri).points is not None
    assert not zpoint(*argv, "points.images=0")["already_finished"]
    assert aecore.load(find_run("a").uri).points is None
    assert zpoint(*argv, "points.images=0")["already_finished"]
    assert model_bytes("a") == weights
    assert logged_epochs(find_run("a").run_id) == [1, 2]


@pytest.mark.usefixtures("tracking")
def test_a_store_that_fails_once_after_the_last_epoch_loses_no_model(
    zpoint, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch
):
    read, failures = RunStore.epoch_metrics, [OSError("HTTP 503")]

    def fail_once(self: RunStore, epoch: int) -> dict[str, float]:
        if failures and self.last_epoch() == 1:
            raise failures.pop()
        return read(self, epoch)

    monkeypatch.setattr(RunStore, "epoch_metrics", fail_once)
    monkeypatch.setattr("aecore.training.checkpoint.RETRY_PAUSE_S", 0.01)
    zpoint("train", tiny, f"data.uri={faces}", "name=run", "optim.epochs=1")
    assert find_run("run").finished()


@pytest.mark.usefixtures("tracking")
def test_a_stop_during_the_last_validation_is_heeded(zpoint, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    """The model is measured and saved by the same command."""
    argv, evaluate = ["train", tiny, f"data.uri={faces}", "name=stopped", "optim.epochs=1"], loop.evaluate

    def evaluate_and_stop(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate_and_stop)
        with pytest.raises(SystemExit) as caught:
            main(argv)
    assert caught.value.code == 130
    fs, root = find_run("stopped").folder
    assert (saved_epochs(fs, f"{root}/checkpoints"), find_run("stopped").finished()) == (1, False)
    zpoint(*argv)
    assert find_run("stopped").finished()


@pytest.mark.usefixtures("trained_runs")
def test_changed_recipe_under_the_same_name_is_refused(zpoint, refused, tiny: str, faces: Path):
    assert "give another name=..., or --fresh" in refused("train", tiny, f"data.uri={faces}", "name=a", "optim.lr=1")
    fresh = zpoint("train", tiny, f"data.uri={faces}", "name=a", "optim.epochs=1", "--fresh")
    assert logged_epochs(fresh["run_id"]) == [1]


@pytest.mark.usefixtures("trained_runs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--fresh scale.workers=1", "RAY_ADDRESS=http://head:8265 is for `zpoint submit`"),
        ("optim.epochs=5 scale.workers=1", "RAY_ADDRESS=http://head:8265 is for `zpoint submit`"),
        ("--fresh data.cache=device", "data.cache=device: the images take"),
        ("optim.epochs=5 data.cache=device", "data.cache=device: the images take"),
        ("--fresh scale.workers=2 model.norm=batch optim.batch=3", "needs 2 images for each of scale.workers=2"),
        ("scale.workers=1 optim.lr=1", "run 'a' was made from another recipe"),  # before it connects
    ],
)
def test_a_refused_command_leaves_the_finished_run_as_it_was(
    refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
):
    """`refused` compares all files."""
    monkeypatch.setattr("cluster.ray_connection.is_connected", lambda: False)  # a test before this one may be
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setattr("aecore.model.autoencoder.default_device", lambda: torch.device("cpu"))
    assert message in refused("train", tiny, f"data.uri={faces}", "name=a", *options.split())


@pytest.mark.usefixtures("trained_runs")
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"channels": 1}, "task.kind=recolor", "task.kind recolor needs colour images"),
        ({"size": 4}, "", "image size must be between"),
    ],
)
def test_a_dataset_of_unfit_images_leaves_the_run_as_it_was(
    refused, tiny: str, faces: Path, changes: dict, options: str, message: str
):
    fs = pafs.LocalFileSystem()
    save_manifest(fs, str(faces), load_manifest(fs, str(faces)).model_copy(update=changes))
    assert message in refused("train", tiny, f"data.uri={faces}", "name=a", "--fresh", *options.split())


@pytest.mark.usefixtures("trained_runs")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_cache_or_a_missing_gpu_leaves_the_run_as_it_was(
    refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr("jobs.train.job.connect", lambda: None)
    monkeypatch.setattr("jobs.train.job.uses_local_ray", lambda: True)
    monkeypatch.setattr("jobs.train.placement.worker_resources", lambda scale, streaming: {"CPU": 1})
    monkeypatch.setattr("jobs.train.placement.check_capacity", lambda num_workers, resources: 1)
    monkeypatch.setattr("aecore.model.autoencoder.default_device", lambda: torch.device("cpu"))
    argv = ("train", tiny, f"data.uri={faces}", "name=a", "--fresh", f"scale.workers={workers}")
    assert "data.cache=device: the images take" in refused(*argv, "data.cache=device")
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "60000")  # train, valid and test are of 36,864 and twice 12,288 bytes
    assert "ZPOINT_CACHE_MAX" in refused(*argv)


@pytest.mark.usefixtures("trained_runs")
def test_command_of_a_finished_run_is_refused_while_another_process_continues_it(refused, tiny: str, faces: Path):
    """With more epochs, say; its model is still the earlier one."""
    with lock_run("a"):
        assert "run 'a' is being trained by pid" in refused("train", tiny, f"data.uri={faces}", "name=a")


@pytest.mark.usefixtures("trained_runs")
@pytest.mark.parametrize("options", ["", "optim.lr=0.01"])
def test_a_fresh_training_killed_while_it_deletes_the_run_leaves_none_of_it(
    zpoint, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch, options: str
):
    def delete_and_die(fs: pafs.FileSystem, root: str) -> None:
        raise KeyboardInterrupt

    argv, store = ["train", tiny, f"data.uri={faces}", "name=a", *options.split()], Path(find_run("a").uri)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.run_store.delete_folder", delete_and_die)
        with pytest.raises(SystemExit):
            main([*argv, "--fresh"])
    assert {path.name for path in store.iterdir()} == {"checkpoints", "epochs", "model"}
    assert not zpoint(*argv)["already_finished"]
    zpoint(*argv[:3], "name=clean", *options.split())
    assert model_bytes("a") == model_bytes("clean")
    assert logged_epochs(find_run("a").run_id) == [1, 2]


@pytest.mark.usefixtures("tracking")
def test_training_without_mlflow_is_logged_by_the_next_command(zpoint, tiny: str, faces: Path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nothing answers
    unlogged = zpoint("train", tiny, f"data.uri={faces}")
    assert unlogged["run_id"] == ""
    assert 1 <= len([r for r in caplog.records if r.name == "cluster.tracking"]) <= 3
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    logged = zpoint("train", tiny, f"data.uri={faces}")
    assert logged["already_finished"]
    assert logged_epochs(logged["run_id"]) == [1, 2]


@pytest.mark.usefixtures("trained_runs")
def test_epochs_are_logged_once_after_a_kill_in_between(zpoint, tiny: str, faces: Path):
    run_id = find_run("a").run_id
    tracking.client().set_tag(run_id, "zpoint.epoch", "1")  # as if killed before this tag was set to 2
    zpoint("train", tiny, f"data.uri={faces}", "name=a")
    assert logged_epochs(run_id) == [1, 2]


# The thread that writes checkpoints stops the process, so the training is at any of the steps after the 16th.
PAUSED_TRAINING = """
import os, signal, sys
from aecore.training import checkpoint
from jobs.cli import main
write_checkpoint = checkpoint.write_checkpoint
def write_and_pause(fs, root, snapshot):
    write_checkpoint(fs, root, snapshot)
    if snapshot.state["step"] >= 16:
        os.kill(os.getpid(), signal.SIGSTOP)
checkpoint.write_checkpoint = write_and_pause
main(sys.argv[1:])
"""


@pytest.mark.usefixtures("tracking")
def test_killed_run_ends_bit_identical(zpoint, capsys, tiny: str, faces: Path):
    """While it runs, a second command is refused; after the kill the same command goes on at once."""
    argv = ["train", tiny, f"data.uri={faces}", "optim.epochs=6", "checkpoint.every=4"]
    process = subprocess.Popen([sys.executable, "-c", PAUSED_TRAINING, *argv, "name=killed"])
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert stopped
    assert stopped.si_code == os.CLD_STOPPED
    assert has_checkpoint("killed", 16)
    for extra in ([], ["--fresh"], ["scale.workers=2"]):
        with pytest.raises(SystemExit) as caught:
            main([*argv, "name=killed", *extra])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"zpoint: error: run 'killed' is being trained by pid {process.pid} on host ")
        assert error.endswith(f"stop it with `kill {process.pid}`, or give another name=...\n")
    process.kill()
    process.wait()

    resumed = zpoint(*argv, "name=killed")
    assert not resumed["already_finished"]
    assert logged_epochs(resumed["run_id"]) == list(range(1, 7))
    assert len(zpoint("runs")["runs"]) == 1
    zpoint(*argv, "name=undisturbed")
    assert model_bytes("killed") == model_bytes("undisturbed")


@pytest.mark.usefixtures("tracking")
def test_more_epochs_continue_a_finished_run_bit_identically(zpoint, refused, tiny: str, faces: Path):
    """Warm-ups are counted in epochs, so they are those of the longer run too."""
    argv = ["train", tiny, f"data.uri={faces}", "optim.warmup=1.5", "loss.kl_warmup=2.5", "model.norm=sync_batch"]
    short = zpoint(*argv, "name=run")
    versions = [zpoint("promote", "run")]
    (Path(short["uri"]) / "study").mkdir()  # of the model of two epochs
    weights = model_bytes("run")
    long = zpoint(*argv, "name=run", "optim.epochs=5")
    assert (long["run_id"], long["already_finished"]) == (short["run_id"], False)
    assert zpoint(*argv, "name=run", "optim.epochs=5")["already_finished"]
    assert logged_epochs(short["run_id"]) == [1, 2, 3, 4, 5]
    assert tracking.client().get_run(short["run_id"]).info.status == "FINISHED"
    assert not (Path(short["uri"]) / "study").exists()
    assert [row["epochs"] for row in zpoint("runs")["runs"]] == ["5"]
    zpoint(*argv, "name=undisturbed", "optim.epochs=5")
    assert model_bytes("run") == model_bytes("undisturbed") != weights

    versions += [zpoint("promote", "run") for _ in range(2)]
    assert [version["version"] for version in versions] == ["1", "2", "2"]
    files = [
        Path(entry.source.removeprefix("file://")) / "model.safetensors"
        for entry in tracking.client().search_model_versions("name = 'zpoint'", order_by=["version_number ASC"])
    ]
    assert [file.read_bytes() for file in files] == [weights, model_bytes("run")]

    error = refused(*argv, "name=run", "optim.epochs=4")
    assert "run 'run' has begun epoch 5, optim.epochs=4 are fewer: take 5 or more, another name=" in error


@pytest.mark.usefixtures("tracking")
def test_fewer_epochs_than_a_stopped_run_has_begun_are_refused(
    zpoint, refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its checkpoint of step 8 is within the second epoch of six steps."""
    argv = ["train", tiny, f"data.uri={faces}", "name=run", "checkpoint.every=4"]

    def stop_at_step_9(run: TrainingRun, batch: Batch) -> None:
        if run.state.step == 9:
            raise KeyboardInterrupt
        train_step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr("aecore.training.loop.train_step", stop_at_step_9)
        with pytest.raises(SystemExit):
            main([*argv, "optim.epochs=3"])
    error = refused(*argv, "optim.epochs=1")
    assert "run 'run' has begun epoch 2, optim.epochs=1 are fewer: take 2 or more, another name=..., or" in error
    zpoint(*argv, "optim.epochs=2")
    zpoint("train", tiny, f"data.uri={faces}", "name=undisturbed", "optim.epochs=2")
    assert model_bytes("run") == model_bytes("undisturbed")


@pytest.mark.usefixtures("trained_runs")
def test_more_epochs_of_a_run_without_a_name_find_it(zpoint, refused, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "optim.epochs=1"]
    first = zpoint(*argv)
    assert zpoint(*argv, "optim.epochs=2")["run_id"] == first["run_id"]


@pytest.mark.usefixtures("tracking")
def test_more_epochs_of_a_cosine_schedule_are_another_training(zpoint, refused, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "name=cosine", "optim.schedule=cosine", "optim.epochs=1"]
    zpoint(*argv)
    assert "run 'cosine' was made from another recipe" in refused(*argv, "optim.epochs=2")


@pytest.mark.usefixtures("trained_runs")
def test_run_of_an_earlier_version_goes_on(zpoint, tiny: str, faces: Path):
    """Its run.json has a digest of the recipe with its epochs."""
    path = Path(find_run("b").uri, "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0ld"}))
    assert zpoint("train", tiny, f"data.uri={faces}", "name=b", "optim.epochs=1")["already_finished"]
    assert zpoint("train", tiny, f"data.uri={faces}", "name=b", "optim.epochs=2")["run"] == "b"


def remove_splits(dataset: Path, names: tuple[str, ...]) -> None:
    fs = pafs.LocalFileSystem()
    manifest = load_manifest(fs, str(dataset))
    splits = {name: shards for name, shards in manifest.splits.items() if name not in names}
    fields = manifest.model_dump(exclude={"digest", "splits"})
    save_manifest(fs, str(dataset), Manifest(**fields, splits=splits))


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize("missing", [("valid",), ("test",), ("valid", "test")])
def test_split_without_images_has_no_metrics(zpoint, tiny: str, faces: Path, missing: tuple[str, ...]):
    remove_splits(faces, missing)
    result = zpoint("train", tiny, f"data.uri={faces}", "optim.epochs=1")
    fs, root = find_run(result["run"]).folder
    metrics = load_model(fs, f"{root}/model").metrics | result["metrics"]
    assert {name.split("_")[0] for name in metrics} & {"valid", "test"} == {"valid", "test"} - set(missing)
    logged = tracking.client().get_run(result["run_id"]).data.metrics
    assert "train_loss" in logged
    assert any(name.startswith("valid_") for name in logged) == ("valid" not in missing)
    zpoint("runs")


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize("norm", ["batch", "sync_batch"])
def test_last_batch_of_one_image_joins_the_one_before_under_batch_norm(zpoint, tiny: str, faces: Path, norm: str):
    """The dataset has 48 training images; batch norm of one image of 16x16 pixels, 1x1 below, has no variance."""
    argv = ["train", tiny, f"data.uri={faces}", f"model.norm={norm}", "optim.epochs=1"]
    assert math.isfinite(zpoint(*argv, "optim.batch=47")["metrics"]["valid_loss"])


@pytest.mark.usefixtures("tracking")
def test_batch_norm_of_too_few_images_is_refused_by_name(refused, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "model.norm=batch"]
    assert "optim.batch: model.norm=batch needs at least 2 images" in refused(*argv, "optim.batch=1")
    with pytest.raises(ValueError, match=r"model\.norm=batch needs 2 training images, the dataset has 1"):
        check_batches(load_recipe(Path(tiny), argv[2:]), 1)
    for workers, batch, count in ((2, 3, 48), (4, 64, 71), (2, 64, 67)):
        recipe = load_recipe(Path(tiny), [*argv[3:], f"scale.workers={workers}", f"optim.batch={batch}"])
        with pytest.raises(ValueError, match=f"needs 2 images for each of scale.workers={workers}, .*sync_batch"):
            check_batches(recipe, count)
    for norm, workers, batch, count in (("batch", 2, 64, 129), ("batch", 1, 2, 3), ("sync_batch", 4, 64, 66)):
        overrides = [f"model.norm={norm}", f"scale.workers={workers}", f"optim.batch={batch}"]
        check_batches(load_recipe(Path(tiny), overrides), count)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("batch", [8, 16, 64])
def test_a_stream_under_batch_norm_is_refused_if_a_worker_may_get_a_batch_of_one_image(
    tiny: str, workers: int, batch: int
):
    """The rows that pad the split to a multiple of the workers, and that are dropped, may all be on one worker."""

    def local_batches(local: int) -> list[int]:
        images = np.zeros((local, 1, 1, 1), np.uint8)
        loader = StreamLoader(lambda epoch: iter([images]), lambda limit: images[:limit], count, sampler, CPU)
        return [len(batch.images) for batch in loader.batches(None)]

    options = ["model.norm=batch", "data.cache=none", f"scale.workers={workers}", f"optim.batch={batch}"]
    recipe, sampler = load_recipe(Path(tiny), options), BatchSampler(0, batch, World(0, workers), min_last=2)
    for count in (*range(40, 60), 105, 129, 130):
        max_local, padding = -(-count // workers), -count % workers
        smallest = min(local_batches(max_local) + local_batches(max_local - padding))
        if smallest >= 2:
            check_batches(recipe, count)
        else:
            with pytest.raises(ValueError, match=f"smallest batch of an epoch has {smallest}: take .*sync_batch"):
                check_batches(recipe, count)


def test_an_elastic_stream_under_batch_norm_is_refused_if_any_number_of_workers_gives_too_small_a_batch(tiny: str):
    options = ["model.norm=batch", "data.cache=none", "optim.batch=16", "scale.workers=[1, 4]"]
    check_batches(load_recipe(Path(tiny), options), 100)
    with pytest.raises(ValueError, match="has 1"):
        check_batches(load_recipe(Path(tiny), options), 105)
    options = [*options[:2], "optim.batch=8"]
    check_batches(load_recipe(Path(tiny), [*options, "scale.workers=4"]), 64)
    with pytest.raises(ValueError, match="has 1"):  # with three workers
        check_batches(load_recipe(Path(tiny), [*options, "scale.workers=[3, 4]"]), 64)


def test_a_stream_with_fewer_images_in_a_batch_than_workers_is_refused(tiny: str):
    """Some of its batches would be empty on all workers."""
    stream = ["data.cache=none", "scale.workers=4", "model.norm=group"]
    with pytest.raises(ValueError, match=r"optim.batch=2 is less than scale.workers=4; take a larger optim.batch"):
        check_batches(load_recipe(Path(tiny), [*stream, "optim.batch=2"]), 100)
    check_batches(load_recipe(Path(tiny), [*stream, "optim.batch=4"]), 100)
    check_batches(load_recipe(Path(tiny), [*stream[1:], "optim.batch=2"]), 100)
