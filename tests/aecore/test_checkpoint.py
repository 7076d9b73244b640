import logging
import math

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from aecore import checkpoint
from aecore.config import check_recipe
from aecore.fit import make_optimizer
from aecore.model import ImageShape, build_model
from aecore.samplers import fit_latents

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
    progress = checkpoint.Progress(1, step, step * 8, {"recon": 1.5})
    return checkpoint.take_snapshot(model, optimizer, RECIPE, progress, valid_loss)


def load(folder):
    model = build_model(RECIPE, ImageShape(16, 1))
    optimizer = make_optimizer(model, RECIPE)
    return checkpoint.load_checkpoint(FS, str(folder), model, optimizer), model, optimizer


def test_round_trip_is_exact(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 7, model, optimizer)
    progress, again, optimizer_again = load(tmp_path)
    assert progress == checkpoint.Progress(1, 7, 56, {"recon": 1.5})
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    before, after = optimizer.state_dict()["state"], optimizer_again.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])


def test_nothing_there_means_from_the_start(tmp_path):
    assert load(tmp_path / "none")[0] == checkpoint.Progress()


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    names = [path.rsplit("/", 1)[1] for path in checkpoint.list_checkpoints(FS, str(tmp_path))]
    assert names == ["step-00000010", "step-00000002"]


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
    checkpoint.save_model(FS, str(tmp_path), model, RECIPE, fit_latents(torch.randn(9, 3)), {"valid_psnr": 20.0})
    assert not list(tmp_path.glob("*.p*"))
    saved = checkpoint.load_model(FS, str(tmp_path))
    z = torch.randn(5, 3)
    assert torch.equal(saved.model.decode(z), model.eval().decode(z))
    assert saved.metrics == {"valid_psnr": 20.0}
    assert saved.latents["covariance"].shape == (3, 3)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model, _ = trained()
    checkpoint.save_model(FS, str(tmp_path), model, RECIPE, fit_latents(torch.randn(9, 3)), {})
    config = (tmp_path / "config.json").read_text().replace('"z_dim": 3', '"z_dim": 4')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint.load_model(FS, str(tmp_path))
