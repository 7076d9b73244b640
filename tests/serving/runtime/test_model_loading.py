"""The networks of the endpoint against the model they are built from."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aecore.config import Recipe, check_recipe
from aecore.latent.points import make_points
from aecore.latent.samplers import fit_latent_stats
from aecore.model.autoencoder import Autoencoder, ImageShape, build_model
from aecore.training.checkpoint import save_model
from cluster.storage import open_uri
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_loading import build_networks, fold_norms, load_version
from serving.runtime.model_reload import update_slot
from serving.runtime.model_slot import ModelSlot
from serving.runtime.registry import ModelVersion

NORMS = ("batch", "sync_batch", "group", "none")
CHANNELS = ([4, 6, 8, 10], [4, 4, 4, 4])  # with equal channels a weight that is folded transposed fits too
Z_DIM = 5


def make_recipe(norm: str, channels: list[int], seed: int = 0) -> Recipe:
    return check_recipe(
        {
            "model": {"z_dim": Z_DIM, "channels": channels, "norm": norm},
            "loss": {"kl_factor": 1},
            "optim": {"seed": seed},
        }
    )


def make_model(norm: str, channels: list[int], image: ImageShape, seed: int = 0) -> Autoencoder:
    """Return a model as after a training: its norms have weights, biases and running statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(make_recipe(norm, channels, seed), image).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            layer.weight.uniform_(0.5, 2, generator=generator)
            layer.bias.normal_(generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.2, 5, generator=generator)
    return model


def make_z(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, Z_DIM)).astype(np.float32)


def assert_close(images: np.ndarray, expected: np.ndarray) -> None:
    """Assert that two arrays of images are equal but for single steps of few pixels: sums in another order."""
    assert (images.dtype, images.shape) == (np.uint8, expected.shape)
    difference = np.abs(images.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_folding_norms_changes_nothing_in_float64(norm: str, channels: list[int]):
    model = make_model(norm, channels, ImageShape(28, 3)).double()
    weights = copy.deepcopy(model.state_dict())
    folded = fold_norms(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    images, z = torch.rand(3, 3, 28, 28).double(), torch.from_numpy(make_z(3)).double()
    for network in (lambda m: m.logits(z), lambda m: m.encode(images).mean, lambda m: m.encode(images).logvar):
        torch.testing.assert_close(network(folded), network(model), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("image", [ImageShape(28, 1), ImageShape(16, 3)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_networks_equal_those_of_the_model(norm: str, image: ImageShape):
    model = make_model(norm, [4, 6, 8, 10], image)
    decode, encode = build_networks(model)
    for n in (1, 3, 64):
        images = decode(make_z(n))
        assert_close(images, model.decode(torch.from_numpy(make_z(n))).numpy())
        assert images.flags.c_contiguous
        assert images.std() > 10
        z = encode(images)
        assert z.dtype == np.float32
        expected = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).mean
        np.testing.assert_allclose(z, expected.numpy(), rtol=1e-4, atol=1e-4)


def save_version(folder: Path, stats_z_dim: int = Z_DIM, with_points: bool = False) -> ModelVersion:
    """Save a random model with latent statistics of `stats_z_dim` dimensions; return its version."""
    recipe = make_recipe("batch", [4, 4, 4, 4])
    model = build_model(recipe, ImageShape(16, 3)).eval()
    latents, points = fit_latent_stats(torch.randn(50, stats_z_dim)), None
    if with_points:
        images = np.zeros((60, 16, 16, 3), np.uint8)
        points = make_points(torch.randn(60, Z_DIM), images, torch.zeros(60, dtype=torch.uint8), {})
    save_model(*open_uri(str(folder)), model, recipe, latents, {"psnr": 21.0}, points)
    return ModelVersion("zpoint", "3", "champion", "run-3", str(folder), "sqlite:///x.db")


def test_loaded_version_has_the_description_of_its_folder(tmp_path: Path):
    loaded = load_version(save_version(tmp_path))
    info = loaded.info
    assert (info.label, info.alias, info.run_id, info.z_dim) == ("zpoint/3", "champion", "run-3", Z_DIM)
    assert (info.image, info.metrics) == (ImageShape(16, 3), {"psnr": 21.0})
    assert info.recipe["model"]["z_dim"] == Z_DIM

    async def round_trip() -> np.ndarray:
        return await loaded.encode(await loaded.decode(make_z(2)))

    assert asyncio.run(round_trip()).shape == (2, Z_DIM)


def test_latent_statistics_of_another_z_dim_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="the latent statistics have z_dim 4, the model has 5"):
        load_version(save_version(tmp_path, stats_z_dim=4))


def damage(file: str, **tensors: torch.Tensor | None) -> Callable[[Path], None]:
    """Return a function that replaces tensors of a safetensors file in a folder, and drops those that are None."""

    def write(folder: Path) -> None:
        content = load_file(folder / file) | tensors
        save_file({name: tensor for name, tensor in content.items() if tensor is not None}, folder / file)

    return write


def write_metrics(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "metrics.json").write_text(text) and None


INCONSISTENT = {
    "metric of text": (write_metrics('{"psnr": "high"}'), "metrics"),
    "metric of null": (write_metrics('{"psnr": null}'), "metrics"),
    "list of metrics": (write_metrics("[]"), "metrics"),
    "no mean": (damage("latents.safetensors", mean=None), "mean"),
    "no covariance": (damage("latents.safetensors", covariance=None), "covariance"),
    "mean of NaN": (damage("latents.safetensors", mean=torch.full((5,), torch.nan)), "mean is not finite"),
    "small covariance": (damage("latents.safetensors", covariance=torch.eye(3)), "latent statistics"),
    "covariance of NaN": (damage("latents.safetensors", covariance=torch.full((5, 5), torch.nan)), "latent statistics"),
    "indefinite covariance": (damage("latents.safetensors", covariance=-torch.eye(5)), "latent statistics"),
    "weights of NaN": (damage("latents.safetensors", gmm_weights=torch.full((1,), torch.nan)), "latent statistics"),
    "means of NaN": (damage("latents.safetensors", gmm_means=torch.full((1, 5), torch.nan)), "gmm are not finite"),
    "small mixture": (damage("latents.safetensors", gmm_means=torch.zeros(1, 3)), "latent statistics"),
    "no mixture's factors": (damage("latents.safetensors", gmm_factors=None), "gmm_factors"),
    "sheet": (
        damage("points.safetensors", sprites=torch.frombuffer(bytearray(b"RIFFxxxx"), dtype=torch.uint8)),
        "sprites",
    ),
    "no columns": (damage("points.safetensors", grid=torch.tensor([0, 16])), "stored points"),
    "large thumbnails": (damage("points.safetensors", grid=torch.tensor([8, 64])), "stored points"),
    "split": (damage("points.safetensors", split=torch.full((60,), 7, dtype=torch.uint8)), "stored points"),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_a_version_of_inconsistent_files_is_refused_and_the_old_one_stays(name: str, tmp_path: Path):
    write, reason = INCONSISTENT[name]
    version = save_version(tmp_path, with_points=True)
    slot = ModelSlot(load_version(version))
    old = slot.current
    write(tmp_path)
    update_slot(slot, replace(version, version="4"), load_version, lambda _: None, EndpointMetrics())
    assert slot.current is old
    assert slot.refused
    assert slot.refused["version"] == "4"
    assert reason in slot.refused["reason"]
    with pytest.raises(ValueError, match=reason):
        load_version(version)
