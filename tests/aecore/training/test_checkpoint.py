import logging
import math
import threading
import time
from functools import partial

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from aecore.config import check_recipe
from aecore.latent.samplers import fit_latent_stats
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint
from aecore.training.loop import make_optimizer

FS = LocalFileSystem()
RECIPE = check_recipe({"model": {"z_dim": 3, "channels": [4, 4, 4, 4]}})


def trained(steps=2):
    model = build_model(RECIPE, ImageShape(16, 1))
    optimizer = make_optimizer(model, RECIPE)
    for _ in range(steps):
        logits, _ = model(torch.rand(4, 1, 16, 16), torch.randn(4, 3))
        logits.square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder, step, model=None, optimizer=None):
    snapshot = snapshot_of(step, model, optimizer)
    path = checkpoint.write_checkpoint(FS, str(folder), snapshot)
    checkpoint.prune(FS, str(folder), 2)
    return path


def snapshot_of(step, model=None, optimizer=None, valid_loss=math.nan):
    if model is None:
        model, optimizer = trained()
    progress = checkpoint.TrainState(1, step, step * 8, {"recon": 1.5})
    return checkpoint.take_snapshot(model, optimizer, RECIPE, progress, valid_loss)


def load(folder):
    model = build_model(RECIPE, ImageShape(16, 1))
    optimizer = make_optimizer(model, RECIPE)
    return checkpoint.load_checkpoint(FS, str(folder), model, optimizer), model, optimizer


def test_round_trip_is_exact(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 7, model, optimizer)
    progress, again, optimizer_again = load(tmp_path)
    assert progress == checkpoint.TrainState(1, 7, 56, {"recon": 1.5})
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before, after = optimizer.state_dict()["state"], optimizer_again.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])


def test_nothing_there_means_from_the_start(tmp_path):
    assert load(tmp_path / "none")[0] == checkpoint.TrainState()


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    names = [path.rsplit("/", 1)[1] for path in checkpoint.list_checkpoints(FS, str(tmp_path))]
    assert names == ["step-00000010", "step-00000002"]


def steps(folder):
    return [int(path[-8:]) for path in checkpoint.list_checkpoints(FS, str(folder))]


def test_the_one_with_the_lowest_validation_loss_is_kept_besides_and_halves_are_not(tmp_path):
    for step, loss in ((1, 5.0), (2, 3.0), (3, math.nan), (4, 4.0), (5, math.nan), (6, 3.5)):
        checkpoint.write_checkpoint(FS, str(tmp_path), snapshot_of(step, valid_loss=loss))
        checkpoint.prune(FS, str(tmp_path), 2)
    assert steps(tmp_path) == [6, 5, 2]
    (tmp_path / "step-00000005" / "progress.json").unlink()
    checkpoint.prune(FS, str(tmp_path), 2)
    assert steps(tmp_path) == [6, 2]
    assert load(tmp_path)[0].step == 6


def test_what_a_training_does_next_does_not_change_a_snapshot(tmp_path):
    model, optimizer = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    snapshot = snapshot_of(1, model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            optimizer.state[parameter]["exp_avg"].zero_()
    checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
    _, again, optimizer_again = load(tmp_path)
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())
    assert all(moments["exp_avg"].any() for moments in list(optimizer_again.state.values())[:2])


def test_a_storage_that_does_not_answer_is_no_damaged_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "read_bytes", refuse)
    with pytest.raises(OSError, match="503"):
        load(tmp_path)


def refuse(*args, **kwargs):
    raise OSError("AWS Error SLOW_DOWN: HTTP 503")


@pytest.fixture
def slow_storage(monkeypatch):
    """Writes wait until `go` is set; `written` has their steps."""
    go, written, write = threading.Event(), [], checkpoint.write_checkpoint

    def wait(fs, root, snapshot):
        assert go.wait(30)
        written.append(snapshot.progress["step"])
        return write(fs, root, snapshot)

    monkeypatch.setattr(checkpoint, "write_checkpoint", wait)
    return go, written


def test_saving_does_not_wait_and_only_the_newest_does(tmp_path, slow_storage):
    go, written = slow_storage
    notes = []
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as saver:
        saver.save(snapshot_of(1))
        while saver._waiting:  # until the first one is being written
            time.sleep(0.001)
        for step in (2, 3, 4):
            saver.save(snapshot_of(step), partial(notes.append, step))
        assert written == []
        go.set()
        saver.finish()
    assert written == [1, 4]
    assert notes == [2, 3, 4]  # of these none is missed
    assert steps(tmp_path) == [4, 1]


def test_what_is_refused_is_told_and_written_later(tmp_path, monkeypatch, caplog):
    write, notes = checkpoint.write_checkpoint, []
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as saver:
        monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)
        saver.save(snapshot_of(1), partial(notes.append, 1))
        while not saver._job.done():
            time.sleep(0.001)
        assert "no checkpoint can be written now: AWS Error SLOW_DOWN: HTTP 503; the training goes on" in caplog.text
        monkeypatch.setattr(checkpoint, "PAUSE", 0.01)
        threading.Timer(0.05, monkeypatch.setattr, (checkpoint, "write_checkpoint", write)).start()
        saver.finish()
    assert steps(tmp_path) == [1]
    assert notes == [1]
    assert "cannot save the last checkpoint yet" in caplog.text


def test_what_stays_refused_is_an_error_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.05)
    monkeypatch.setattr(checkpoint, "PAUSE", 0.01)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as saver:
        saver.save(snapshot_of(1))
        with pytest.raises(OSError, match="503"):
            saver.finish()


def test_a_mistake_in_writing_is_no_storage_that_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda *args: 1 / 0)
    with checkpoint.CheckpointWriter(FS, str(tmp_path), 2) as saver:
        saver.save(snapshot_of(1))
        while not saver._job.done():
            time.sleep(0.001)
        with pytest.raises(ZeroDivisionError):
            saver.save(snapshot_of(2))


@pytest.mark.parametrize("harm", ["no progress", "flipped byte", "cut short", "missing file"])
def test_a_damaged_one_is_passed_over(tmp_path, caplog, harm):
    save(tmp_path, 1)
    newest = tmp_path / save(tmp_path, 2).rsplit("/", 1)[1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if harm == "no progress":
        (newest / "progress.json").unlink()
    elif harm == "flipped byte":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif harm == "cut short":
        weights.write_bytes(data[: len(data) // 2])
    else:
        weights.unlink()
    with caplog.at_level(logging.WARNING):
        progress, _, _ = load(tmp_path)
    assert progress.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_model_folder_rebuilds_the_network(tmp_path):
    model, _ = trained()
    checkpoint.save_model(FS, str(tmp_path), model, RECIPE, fit_latent_stats(torch.randn(9, 3)), {"valid_psnr": 20.0})
    assert not list(tmp_path.glob("*.p*"))
    saved = checkpoint.load_model(FS, str(tmp_path))
    z = torch.randn(5, 3)
    assert torch.equal(saved.model.decode(z), model.eval().decode(z))
    assert saved.metrics == {"valid_psnr": 20.0}
    assert saved.latents["covariance"].shape == (3, 3)


def test_weights_of_another_version_of_the_network_are_refused(tmp_path, monkeypatch):
    model, _ = trained()
    checkpoint.save_model(FS, str(tmp_path / "model"), model, RECIPE, fit_latent_stats(torch.randn(9, 3)), {})
    save(tmp_path / "run", 7)
    monkeypatch.setattr(checkpoint, "NETWORK", checkpoint.NETWORK + 1)
    for refused in (lambda: checkpoint.load_model(FS, str(tmp_path / "model")), lambda: load(tmp_path / "run")):
        with pytest.raises(ValueError, match=r"network's version \d.*train it again"):
            refused()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model, _ = trained()
    checkpoint.save_model(FS, str(tmp_path), model, RECIPE, fit_latent_stats(torch.randn(9, 3)), {})
    config = (tmp_path / "config.json").read_text().replace('"z_dim": 3', '"z_dim": 4')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint.load_model(FS, str(tmp_path))
