"""Asking the app without Ray, and reading its answers: what the tests of its routes share."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from serving.http.api import make_api
from serving.http.decoding import NPY
from serving.http.encoding import encode_npy
from serving.runtime.model_slot import ModelSlot
from tests.serving.live import Z_DIM, lively_model, made_slot

SLOT = made_slot()
FACTS, MODEL = SLOT.current.facts, lively_model()


def client(slot: ModelSlot = SLOT, **options):
    return TestClient(make_api(slot, **options), "http://localhost", raise_server_exceptions=False)


def slot_with(decode=None, encode=None, **facts):
    """The made model, with another method or other facts."""
    now = SLOT.current
    served = SimpleNamespace(facts=replace(FACTS, **facts), decode=decode or now.decode, encode=encode or now.encode)
    return ModelSlot(served)


def decoded(z):
    return MODEL.decode(torch.from_numpy(z)).numpy()


def same(images, wanted):
    """Equal but for a step of a pixel: folded batch norms, and batches, sum in another order."""
    return images.shape == wanted.shape and np.abs(images.astype(int) - wanted).max() <= 1


def picture(width=40, height=30, kind="PNG", mode="RGB", seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def read_picture(body):
    return np.asarray(Image.open(io.BytesIO(body)))


def read_npy(body):
    return np.load(io.BytesIO(body))


def points(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def decode(http, z, accept=NPY):
    return http.post("/v1/decode", content=encode_npy(z), headers={"content-type": NPY, "accept": accept})


def is_problem(answer, status, text=""):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-zpoint-model"] == "zpoint/7"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert text in body["detail"]
    return True
