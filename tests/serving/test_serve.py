"""The endpoint behind HAProxy, and its client."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from aecore.checkpoint import save_model
from aecore.config import Recipe
from aecore.model import ImageShape, build_model
from aecore.samplers import fit_latents, sample
from cluster import tracking
from cluster.storage import open_uri
from serving import haproxy
from serving.client import Client
from serving.deployment import serve_champion, stop
from serving.registry import find_champion

Z_DIM = 8
TOKEN = "of the tests"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def haproxies(port):
    """Pids of the haproxy processes that listen at `port`, by their configuration."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if "haproxy" in words[0] and f":{port}\n" in Path(words[words.index("-f") + 1]).read_text():
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZPOINT_HOME", str(tmp_path))
    monkeypatch.delenv("ZPOINT_TOKEN", raising=False)
    monkeypatch.delenv("ZPOINT_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """A random model, registered, with the alias champion; ZPOINT_HOME points at it."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("ZPOINT_HOME", str(home))
        patch.setenv("ZPOINT_TOKEN", TOKEN)
        patch.delenv("ZPOINT_STORE", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        recipe = Recipe.model_validate({"model": {"z_dim": Z_DIM, "channels": [4, 4, 8, 8]}})
        model = build_model(recipe, ImageShape(16, 3)).eval()
        latents = fit_latents(torch.randn(100, Z_DIM))
        source = f"file://{home}/model"
        save_model(*open_uri(source), model, recipe, latents, {"psnr": 21.0})
        registry = tracking.client()
        registry.create_registered_model(tracking.MODEL_NAME)
        version = registry.create_model_version(tracking.MODEL_NAME, source).version
        registry.set_registered_model_alias(tracking.MODEL_NAME, "champion", version)
        yield model, latents


@pytest.fixture(scope="module")
def served(ray_cluster, champion):
    try:
        yield serve_champion(port=free_port())
    finally:
        stop()


@pytest.fixture
def endpoint(served):
    with Client(served.url, TOKEN) as client:
        yield client


def points(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def decoded(champion, z):
    return champion[0].decode(torch.from_numpy(z)).numpy()


def close(images, wanted):
    return images.shape == wanted.shape and np.abs(images.astype(int) - wanted).max() <= 1


@pytest.mark.ray
def test_haproxy_listens_and_the_model_answers(served, endpoint, champion):
    port = int(served.url.rpartition(":")[2])
    assert len(haproxies(port)) >= 1
    assert (served.model, served.version) == ("zpoint", "1")
    assert endpoint.model()["metrics"] == {"psnr": 21.0}
    z = points(300)
    assert close(endpoint.decode(z), decoded(champion, z))
    picture = np.asarray(Image.open(io.BytesIO(endpoint.decode_png(z[:1]))))
    assert close(picture, decoded(champion, z[:1])[0])
    drawn = sample("gaussian", 4, champion[1], 5, temperature=0.5).numpy()
    assert close(endpoint.sample("gaussian", 4, 5, temperature=0.5), decoded(champion, drawn))
    assert endpoint.sample_png(n=4).startswith(b"\x89PNG")


@pytest.mark.ray
def test_concurrent_decodes_equal_single_ones(endpoint, champion):
    requests = [points(n, seed) for seed, n in enumerate([1, 2, 1, 70, 1, 3] * 8)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(endpoint.decode, requests))
    assert all(close(images, decoded(champion, z)) for images, z in zip(answers, requests, strict=True))


@pytest.mark.ray
def test_what_the_endpoint_refuses_is_a_value_error(served, endpoint):
    with pytest.raises(ValueError, match="this model takes z_dim 8"):
        endpoint.decode(np.zeros((1, 9)))
    with pytest.raises(ValueError, match="finite"):
        endpoint.decode_png(np.full((1, Z_DIM), np.inf))
    with pytest.raises(ValueError, match="unknown sampler 'magic'"):
        endpoint.sample("magic")
    start = time.perf_counter()
    with pytest.raises(ValueError, match="one request takes 4096 z-points"):
        endpoint.decode(np.zeros((10_000_000, Z_DIM), np.float32))
    assert time.perf_counter() - start < 10
    with Client(served.url, "wrong") as stranger, pytest.raises(ValueError, match="Authorization: Bearer"):
        stranger.model()
    assert httpx2.get(f"{served.url}/healthz").json() == {"status": "ok"}


@pytest.mark.ray
def test_a_second_endpoint_on_the_same_ray_is_refused(served):
    with pytest.raises(ValueError, match="this Ray serves already"):
        serve_champion(port=free_port())
    with pytest.raises(ValueError, match="cannot listen at"):
        serve_champion(port=int(served.url.rpartition(":")[2]))


@pytest.mark.ray
def test_stop_leaves_nothing(ray_cluster, champion):
    stop()
    port = free_port()
    serve_champion(port=port)
    stop()
    assert haproxies(port) == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_an_open_host_wants_a_token(home):
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        serve_champion(host="0.0.0.0")


def test_an_alias_that_nothing_has(home):
    with pytest.raises(ValueError, match="no model has the alias 'champion'"):
        find_champion()


def test_haproxy_statistics_stay_on_loopback():
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE as template

    changed = haproxy.on_loopback(template)
    binds = [line.strip() for line in changed.splitlines() if line.strip().startswith("bind ")]
    assert "bind 127.0.0.1:{{ config.metrics_port }}" in binds
    assert "bind 127.0.0.1:{{ config.stats_port }}" in binds
    assert "bind {{ config.frontend_host }}:{{ config.frontend_port }}" in binds
    assert haproxy.on_loopback(changed) == changed


def test_haproxy_ends_with_its_parent(tmp_path):
    script = haproxy.wrap(tmp_path, "/bin/sleep")
    start = f"print(subprocess.Popen([{str(script)!r}, '60']).pid, flush=True)"
    code = f"import subprocess, time; {start}; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 5
        while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(parent.pid, signal.SIGKILL)
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
