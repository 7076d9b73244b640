"""A test client of the app, without Ray, and readers of its responses."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from aecore.data.images import register_heif
from serving.http.api import create_app
from serving.http.decoding import NPY
from serving.http.encoding import encode_npy
from serving.runtime.model_slot import ModelSlot
from tests.serving.app_server import Z_DIM, make_model, make_slot

SLOT = make_slot()
INFO, MODEL = SLOT.current.info, make_model()


def make_client(*slots: ModelSlot, **options):
    return TestClient(create_app(*(slots or (SLOT,)), **options), "http://localhost", raise_server_exceptions=False)


def make_slot_with(decode=None, encode=None, **info):
    """Return a slot with the model of SLOT, other methods and other fields of its ModelInfo."""
    current = SLOT.current
    served_model = SimpleNamespace(
        info=replace(INFO, **info), decode=decode or current.decode, encode=encode or current.encode
    )
    return ModelSlot(served_model)


def decoded(z):
    """Return the images uint8 (n, size, size, channels) that the model itself makes of z-points (n, z_dim)."""
    return MODEL.decode(torch.from_numpy(z)).numpy()


def images_close(images, expected):
    """Return true if no pixel differs by more than 1: folded batch norms and batches sum in another order."""
    return images.shape == expected.shape and np.abs(images.astype(int) - expected).max() <= 1


def make_image_file(width=40, height=30, kind="PNG", mode="RGB", seed=0):
    """Return the bytes of an image file with random pixels."""
    register_heif()
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def read_image(body):
    return np.asarray(Image.open(io.BytesIO(body)))


def read_npy(body):
    return np.load(io.BytesIO(body))


def make_z(n, seed=0):
    """Return random z-points, float32 (n, z_dim)."""
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def post_decode(http, z, accept=NPY):
    return http.post("/v1/decode", content=encode_npy(z), headers={"content-type": NPY, "accept": accept})


def is_problem(answer, status, text=""):
    """Assert that a response is an RFC 9457 problem with this status and `text` in its detail; return true."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-zpoint-model"] == "zpoint/7"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert text in body["detail"]
    return True
