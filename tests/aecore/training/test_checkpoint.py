"""Checkpoints and model folders: exact, complete or absent, pruned, and written in the background."""

import logging
import math
import re
import threading
from functools import partial

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from aecore.config import check_recipe
from aecore.latent.samplers import fit_latent_stats
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint
from aecore.training.checkpoint import TrainState

FS = LocalFileSystem()
RECIPE = check_recipe({"model": {"z_dim": 3, "channels": [4, 4, 4, 4]}})
LATENTS = fit_latent_stats(torch.randn(9, 3, generator=torch.manual_seed(0)))


def new_model_and_optimizer():
    model = build_model(RECIPE, ImageShape(16, 1))
    return model, torch.optim.Adam(model.parameters(), fused=True)


@pytest.fixture(scope="module")
def trained():
    """A model and its optimizer after two steps; tests do not change them."""
    model, optimizer = new_model_and_optimizer()
    for _ in range(2):
        logits, _ = model(torch.rand(4, 1, 16, 16), torch.randn(4, 3))
        logits.square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def snapshot_of(trained):
    """Return a function: the snapshot of a step, in epoch 2 of batches of 8."""

    def snapshot(step, valid_loss=math.nan):
        state = TrainState(1, step, step * 8, {"recon": 1.5})
        return checkpoint.take_snapshot(*trained, RECIPE, state, valid_loss)

    return snapshot


@pytest.fixture
def write(snapshot_of, tmp_path):
    """Return a function that writes the checkpoint of a step into tmp_path, prunes, and returns its folder."""

    def write_and_prune(step, valid_loss=math.nan):
        path = checkpoint.write_checkpoint(FS, str(tmp_path), snapshot_of(step, valid_loss))
        checkpoint.prune(FS, str(tmp_path), 2, step)
        return tmp_path / path.rsplit("/", 1)[1]

    return write_and_prune


def load(folder):
    model, optimizer = new_model_and_optimizer()
    return checkpoint.load_checkpoint(FS, str(folder), model, optimizer), model, optimizer


def stored_steps(folder):
    return [int(path.rpartition("/step-")[2].split("-")[0]) for path in checkpoint.list_checkpoints(FS, str(folder))]


def fail_503(*args, **kwargs):
    raise OSError("AWS Error SLOW_DOWN: HTTP 503")


def test_checkpoint_round_trip_is_exact(tmp_path, trained, write):
    model, optimizer = trained
    write(7)
    state, loaded_model, loaded_optimizer = load(tmp_path)
    assert state == TrainState(1, 7, 56, {"recon": 1.5})
    for tensor, loaded in zip(model.state_dict().values(), loaded_model.state_dict().values(), strict=True):
        assert torch.equal(tensor, loaded)
    moments, loaded_moments = optimizer.state_dict()["state"], loaded_optimizer.state_dict()["state"]
    assert moments.keys() == loaded_moments.keys()
    assert all(torch.equal(moments[i][key], loaded_moments[i][key]) for i in moments for key in moments[i])


def test_without_checkpoints_the_state_is_new(tmp_path):
    assert load(tmp_path / "none")[0] == TrainState()


def test_pruning_keeps_the_newest(tmp_path, write):
    for step in (1, 2, 10):
        write(step)
    assert stored_steps(tmp_path) == [10, 2]


def test_checkpoints_are_ordered_by_their_step_and_other_folders_ignored(tmp_path, write):
    (tmp_path / "step-00000009 copy").mkdir()
    for step in (8, 99_999_999, 100_000_000):
        write(step)
    assert stored_steps(tmp_path) == [100_000_000, 99_999_999]
    assert load(tmp_path)[0].step == 100_000_000


def test_a_repeated_epoch_replaces_the_checkpoints_of_the_attempt_before(tmp_path, snapshot_of):
    """A stream that resumes within an epoch repeats it: its steps are counted again from the epoch's start."""
    for attempt in ((200, 3.0), (250, math.nan), (500, math.nan), (750, math.nan)), ((250, math.nan),):
        with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
            for step, valid_loss in attempt:
                writer.save(snapshot_of(step, valid_loss))
                writer._last_write.result(30)
    assert stored_steps(tmp_path) == [250, 200]
    assert load(tmp_path)[0].step == 250


def test_the_checkpoint_that_a_run_resumed_from_stays_until_another_of_its_step_is_complete(
    tmp_path, snapshot_of, monkeypatch
):
    """A stream repeats its epoch, and the end of an epoch may follow a checkpoint of its last step."""
    repeated = checkpoint.take_snapshot(*new_model_and_optimizer(), RECIPE, TrainState(1, 150))  # other weights
    writer = checkpoint.CheckpointWriter(FS, str(tmp_path), 1)
    writer.save(snapshot_of(150))
    writer.finish()
    with monkeypatch.context() as patch, checkpoint.CheckpointWriter(FS, str(tmp_path), 1) as writer:
        patch.setattr(checkpoint, "write_json", fail_503)  # as a kill before the last file
        writer.save(repeated)
        writer._last_write.result(30)
        writer.save(repeated)
    assert stored_steps(tmp_path) == [150, 150], "retries go to the same folder"
    first = snapshot_of(150).model
    assert all(torch.equal(tensor, first[name]) for name, tensor in load(tmp_path)[1].state_dict().items())
    for attempt in range(2):
        with checkpoint.CheckpointWriter(FS, str(tmp_path), 2 - attempt) as writer:
            writer.save(repeated)
        assert stored_steps(tmp_path) == [150]
        assert all(torch.equal(tensor, repeated.model[name]) for name, tensor in load(tmp_path)[1].state_dict().items())


def test_later_checkpoints_of_a_process_that_took_the_run_over_stay(tmp_path, snapshot_of):
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 1) as writer:
        checkpoint.write_checkpoint(FS, str(tmp_path), snapshot_of(100))
        checkpoint.write_checkpoint(FS, str(tmp_path), snapshot_of(140))
        (tmp_path / "step-00000140" / "progress.json").unlink()  # which comes last
        writer.save(snapshot_of(60))
    assert stored_steps(tmp_path) == [140, 100, 60]


def test_pruning_keeps_the_lowest_validation_loss_and_deletes_incomplete_checkpoints(tmp_path, write):
    for step, valid_loss in ((1, 5.0), (2, 3.0), (3, math.nan), (4, 4.0), (5, math.nan), (6, 3.5)):
        write(step, valid_loss)
    assert stored_steps(tmp_path) == [6, 5, 2]
    (tmp_path / "step-00000005" / "progress.json").unlink()
    checkpoint.prune(FS, str(tmp_path), 2, 6)
    assert stored_steps(tmp_path) == [6, 2]
    assert load(tmp_path)[0].step == 6


def test_later_training_does_not_change_a_snapshot(tmp_path):
    model, optimizer = new_model_and_optimizer()
    model(torch.rand(4, 1, 16, 16), torch.randn(4, 3))[0].square().sum().backward()
    optimizer.step()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    snapshot = checkpoint.take_snapshot(model, optimizer, RECIPE, TrainState())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            optimizer.state[parameter]["exp_avg"].zero_()
    checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
    _, loaded_model, loaded_optimizer = load(tmp_path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded_model.state_dict().items())
    assert all(moments["exp_avg"].any() for moments in list(loaded_optimizer.state.values())[:2])


def test_failing_storage_does_not_count_as_a_damaged_checkpoint(tmp_path, write, monkeypatch):
    write(1)
    monkeypatch.setattr(checkpoint, "read_bytes", fail_503)
    with pytest.raises(OSError, match="503"):
        load(tmp_path)


@pytest.fixture
def slow_storage(monkeypatch):
    """Writes set `started`, then wait for `resume`; `written` lists their steps."""
    started, resume, written = threading.Event(), threading.Event(), []
    write_checkpoint = checkpoint.write_checkpoint

    def wait_and_write(fs, root, snapshot):
        started.set()
        assert resume.wait(30)
        written.append(snapshot.state["step"])
        return write_checkpoint(fs, root, snapshot)

    monkeypatch.setattr(checkpoint, "write_checkpoint", wait_and_write)
    return started, resume, written


def test_saving_does_not_wait_and_writes_only_the_newest_pending_snapshot(tmp_path, snapshot_of, slow_storage):
    started, resume, written = slow_storage
    called = []
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
        writer.save(snapshot_of(1))
        assert started.wait(30)
        for step in (2, 3, 4):
            writer.save(snapshot_of(step), partial(called.append, step))
        assert written == []
        resume.set()
        writer.finish()
    assert written == [1, 4]
    assert called == [2, 3, 4]  # all of them, also those of replaced snapshots
    assert stored_steps(tmp_path) == [4, 1]


def test_a_checkpoint_is_written_though_epochs_end_faster_than_they_are_saved(tmp_path, snapshot_of):
    """Before, the writer saved epoch after epoch and no checkpoint: a killed run lost 200 short epochs."""
    stored: list[list[int]] = []

    def save_epoch(step: int) -> None:
        stored.append(stored_steps(tmp_path))
        if step < 4:  # the next epoch ends while this one is saved
            writer.save(snapshot_of(step + 1), partial(save_epoch, step + 1))

    with checkpoint.CheckpointWriter(FS, str(tmp_path), 1) as writer:
        writer.save(snapshot_of(1), partial(save_epoch, 1))
        while len(stored) < 4:
            writer._last_write.result(30)
        writer.finish()
    assert stored == [[], [1], [2], [3]]


@pytest.mark.parametrize("is_failing", [False, True])
def test_training_waits_for_a_slow_storage_but_not_for_a_failing_one(tmp_path, snapshot_of, monkeypatch, is_failing):
    started, waited = threading.Event(), threading.Event()

    def save_epoch() -> None:
        started.set()
        if is_failing:
            fail_503()
        assert waited.wait(30)

    monkeypatch.setattr(checkpoint, "wait", lambda writes: waited.set())
    monkeypatch.setattr(checkpoint, "retry_storage", lambda call, action: None)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 1) as writer:
        writer.save(snapshot_of(0), save_epoch)
        assert started.wait(30)
        if is_failing:
            writer._last_write.result(30)
        for step in range(1, checkpoint.MAX_BACKLOG):
            writer.save(snapshot_of(step), save_epoch)
        assert not waited.is_set()
        writer.save(snapshot_of(checkpoint.MAX_BACKLOG), save_epoch)
        has_waited = waited.is_set()
        waited.set()  # else the calls wait in the writer's thread
    assert has_waited is not is_failing
    assert stored_steps(tmp_path) == ([] if is_failing else [checkpoint.MAX_BACKLOG])


def test_writer_keeps_the_newest_checkpoints(tmp_path, snapshot_of):
    for step in (1, 2, 10):
        with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
            writer.save(snapshot_of(step))
    assert stored_steps(tmp_path) == [10, 2]


def test_failed_write_is_logged_and_retried(tmp_path, snapshot_of, monkeypatch, caplog):
    write_checkpoint, called, failures = checkpoint.write_checkpoint, [], iter([fail_503] * 3)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
        monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *args: next(failures, write_checkpoint)(*args))
        writer.save(snapshot_of(1), partial(called.append, 1))
        writer._last_write.result(30)
        assert "cannot write a checkpoint: AWS Error SLOW_DOWN: HTTP 503; the training continues" in caplog.text
        monkeypatch.setattr(checkpoint, "RETRY_PAUSE_S", 0.01)
        writer.finish()
    assert stored_steps(tmp_path) == [1]
    assert called == [1]
    assert re.search(r"cannot save the last checkpoint yet: .*; retrying for [1-6]?\d s", caplog.text)


def test_finish_raises_if_the_storage_keeps_failing(tmp_path, snapshot_of, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_checkpoint", fail_503)
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.05)
    monkeypatch.setattr(checkpoint, "RETRY_PAUSE_S", 0.01)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
        writer.save(snapshot_of(1))
        with pytest.raises(OSError, match="503"):
            writer.finish()


def test_programming_errors_in_a_write_are_raised_not_retried(tmp_path, snapshot_of, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *args: 1 / 0)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as writer:
        writer.save(snapshot_of(1))
        assert isinstance(writer._last_write.exception(30), ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            writer.save(snapshot_of(2))


@pytest.mark.parametrize("damage", ["no progress.json", "flipped byte", "truncated", "missing file"])
def test_damaged_checkpoint_is_skipped(tmp_path, write, caplog, damage):
    write(1)
    newest = write(2)
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "no progress.json":
        (newest / "progress.json").unlink()
    elif damage == "flipped byte":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    else:
        weights.unlink()
    with caplog.at_level(logging.WARNING):
        state, _, _ = load(tmp_path)
    assert state.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_model_folder_rebuilds_the_network(tmp_path, trained):
    model = trained[0]
    checkpoint.save_model(FS, str(tmp_path), model, RECIPE, LATENTS, {"valid_psnr": 20.0})
    assert not list(tmp_path.glob("*.p*"))  # no pickle
    saved = checkpoint.load_model(FS, str(tmp_path))
    z = torch.randn(5, 3)
    assert torch.equal(saved.model.decode(z), model.decode(z))
    assert saved.metrics == {"valid_psnr": 20.0}
    assert saved.latents["covariance"].shape == (3, 3)


def test_model_without_points_deletes_those_of_fewer_epochs(tmp_path, trained):
    (tmp_path / checkpoint.POINTS_FILE).write_bytes(b"old")
    checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    assert checkpoint.load_model(FS, str(tmp_path)).points is None


def test_a_model_folder_that_is_written_anew_is_complete_or_absent(tmp_path, trained, monkeypatch):
    checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    write_atomic, writes = checkpoint.write_atomic, iter([checkpoint.write_atomic, fail_503])
    monkeypatch.setattr(checkpoint, "write_atomic", lambda *args: next(writes, write_atomic)(*args))
    with pytest.raises(OSError, match="503"):
        checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    with pytest.raises(FileNotFoundError):
        checkpoint.load_model(FS, str(tmp_path))


def test_weights_of_another_network_version_are_refused(tmp_path, trained, write, monkeypatch):
    checkpoint.save_model(FS, str(tmp_path / "model"), trained[0], RECIPE, LATENTS, {})
    write(7)
    monkeypatch.setattr(checkpoint, "NETWORK_VERSION", checkpoint.NETWORK_VERSION + 1)
    for load_any in (lambda: checkpoint.load_model(FS, str(tmp_path / "model")), lambda: load(tmp_path)):
        with pytest.raises(ValueError, match=r"network version \d.*train the model again"):
            load_any()


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, trained):
    checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    config = (tmp_path / "config.json").read_text().replace('"z_dim": 3', '"z_dim": 4')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint.load_model(FS, str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "latents.safetensors", "points.safetensors", "metrics.json"])
def test_a_damaged_file_of_a_model_is_named(tmp_path, trained, name):
    checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    (tmp_path / name).write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{name} is (damaged|not valid JSON): "):
        checkpoint.load_model(FS, str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "latents.safetensors", "metrics.json"])
def test_a_missing_file_of_a_model_is_named(tmp_path, trained, name):
    checkpoint.save_model(FS, str(tmp_path), trained[0], RECIPE, LATENTS, {})
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"the model in {tmp_path} lacks a file: .*{name}"):
        checkpoint.load_model(FS, str(tmp_path))


@pytest.mark.parametrize("config", ["{}", "[]", '{"recipe": 1, "image": {"side": 16}}'])
def test_another_programs_config_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config.json is not the config of a model"):
        checkpoint.load_model(FS, str(tmp_path))
