"""A random model, and its app served by uvicorn on a free port of 127.0.0.1."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
import uvicorn

from aecore.config import Recipe
from aecore.latent.directions import fit_directions
from aecore.latent.points import StoredPoints, make_points
from aecore.latent.samplers import fit_latent_stats
from aecore.model.autoencoder import Autoencoder, ImageShape, build_model
from serving.http.api import create_app
from serving.http.decoding import Limits
from serving.runtime.model_loading import LoadedModel
from serving.runtime.model_slot import ModelInfo, ModelSlot

Z_DIM, IMAGE = 8, ImageShape(16, 3)
RECIPE = Recipe.model_validate({"model": {"z_dim": Z_DIM, "channels": [4, 4, 8, 8]}})


def make_slot(version: str = "7", alias: str = "champion", kl_factor: float = 1.0) -> ModelSlot:
    """Return a slot with a random model that has every optional statistic: a mixture, attributes, stored z-points."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, Z_DIM, generator=generator) * torch.linspace(2, 0.5, Z_DIM) + 0.5
    attributes = {"Smiling": (z[:, 0] + z[:, 3] > 1).float(), "dark_hair": (z[:, 1] > 0).float()}
    latents = fit_latent_stats(z, n_components=2) | fit_directions(z, attributes)
    recipe = RECIPE.model_dump(mode="json")
    recipe["loss"]["kl_factor"] = kl_factor
    info = ModelInfo(
        "zpoint", version, alias, "run-1", recipe, IMAGE, Z_DIM, {"psnr": 20.0}, latents, points=make_stored_points()
    )
    return ModelSlot(LoadedModel(info, make_model()))


@cache
def make_stored_points() -> StoredPoints:
    """Return 100 z-points with random thumbnails, 80 of them training images, and one attribute."""
    z = torch.randn(100, Z_DIM, generator=torch.Generator().manual_seed(1))
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 1, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    split = torch.tensor([0] * 80 + [2] * 20, dtype=torch.uint8)
    return make_points(z, images, split, {"Smiling": (z[:, 0] > 0).float()})


def make_model() -> Autoencoder:
    """Return a model whose random weights are so large that a small step of z changes the image."""
    model = build_model(RECIPE, IMAGE).eval().requires_grad_(False)
    for weights in (p for p in model.decoder.parameters() if p.ndim > 1):
        weights.mul_(3)
    model.from_latent.weight.mul_(10)
    return model


@contextmanager
def serve_app(*slots: ModelSlot, token: str = "", limits: Limits | None = None) -> Iterator[str]:
    """Serve the app of `slots` inside the block; yield its URL."""
    app = create_app(*slots, token=token, limits=limits)
    # It does not close an idle connection before the client does.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_keep_alive=600))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
