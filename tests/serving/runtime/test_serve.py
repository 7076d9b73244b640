"""The endpoint behind HAProxy, and its client."""

import io
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from aecore.config import Recipe
from aecore.latent.samplers import fit_latent_stats, sample
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training.checkpoint import save_model
from cluster import tracking
from cluster.storage import open_uri
from jobs.commands.serve import serve
from serving.client import Client
from serving.runtime import deployment, haproxy
from serving.runtime.deployment import SERVE_ENV, free_port, start_endpoint, stop_endpoint
from serving.runtime.registry import find_model_version
from serving.runtime.replica import _recall
from tests.serving.request_load import TOKEN, Z_DIM, RequestLoad, all_replicas, make_z
from tests.sockets import listening_addresses


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
        latents = fit_latent_stats(torch.randn(100, Z_DIM))
        source = f"file://{home}/model"
        save_model(*open_uri(source), model, recipe, latents, {"psnr": 21.0})
        registry = tracking.client()
        registry.create_registered_model(tracking.MODEL_NAME)
        for place in (source, source, f"file://{home}/nothing"):  # version 3 will not load
            registry.create_model_version(tracking.MODEL_NAME, place)
        registry.set_registered_model_alias(tracking.MODEL_NAME, "champion", "1")
        yield model, latents


@pytest.fixture(scope="module")
def served(ray_cluster, champion):
    try:
        yield start_endpoint(port=free_port(), replicas=(2, 2), compiled=False)
    finally:
        stop_endpoint()


def point_alias_to(version):
    tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", version)


def replicas():
    """Pids of this Ray's replicas."""
    from ray._private.worker import get_dashboard_url
    from ray.util.state import list_actors

    here = f"http://{get_dashboard_url()}"  # else it asks whichever Ray it finds first, maybe another test's
    wanted = [("class_name", "=", "ServeReplica:zpoint:decoder"), ("state", "=", "ALIVE")]
    actors = list_actors(address=here, filters=wanted)
    return [actor.pid for actor in actors]


def told():
    """What all replicas of this Ray have written to their logs."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    return "".join(path.read_text() for path in Path(get_serve_logs_dir()).glob("replica_zpoint_*.log"))


@pytest.fixture
def endpoint(served):
    with Client(served.url, TOKEN) as client:
        yield client


def decoded(champion, z):
    return champion[0].decode(torch.from_numpy(z)).numpy()


def close(images, wanted):
    return images.shape == wanted.shape and np.abs(images.astype(int) - wanted).max() <= 1


@pytest.mark.ray
def test_haproxy_listens_and_the_model_answers(served, endpoint, champion):
    port = int(served.url.rpartition(":")[2])
    assert len(haproxies(port)) >= 1
    assert (served.model, served.version) == ("zpoint", "1")
    remembered = _recall(find_model_version("champion"))  # what a new replica falls back to
    assert remembered is not None
    assert remembered.version == "1"
    assert endpoint.model()["metrics"] == {"psnr": 21.0}
    z = make_z(300)
    assert close(endpoint.decode(z), decoded(champion, z))
    picture = np.asarray(Image.open(io.BytesIO(endpoint.decode_png(z[:1]))))
    assert close(picture, decoded(champion, z[:1])[0])
    drawn = sample("gaussian", 4, champion[1], 5, temperature=0.5).numpy()
    assert close(endpoint.sample("gaussian", 4, 5, temperature=0.5), decoded(champion, drawn))
    assert endpoint.sample_png(n=4).startswith(b"\x89PNG")


@pytest.mark.ray
def test_concurrent_decodes_equal_single_ones(endpoint, champion):
    requests = [make_z(n, seed) for seed, n in enumerate([1, 2, 1, 70, 1, 3] * 8)]
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
def test_moving_the_alias_swaps_the_model_without_a_failed_request(served, endpoint):
    with RequestLoad(served.url, retries=False) as load:
        load.wait_until(lambda: load.versions["zpoint/1"] > 20)
        point_alias_to("2")
        load.wait_until(lambda: load.versions["zpoint/2"] > 20)
        load.wait_until(lambda: all_replicas(endpoint, lambda model: model["version"] == "2"))
        point_alias_to("3")  # does not load: refused, and version 2 goes on
        load.wait_until(lambda: all_replicas(endpoint, lambda model: model["refused"]))
        model = endpoint.model()
        assert (model["version"], model["refused"]["version"]) == ("2", "3")
        assert "nothing" in model["refused"]["reason"]
        point_alias_to("1")
        before = load.versions["zpoint/1"]
        load.wait_until(lambda: load.versions["zpoint/1"] > before + 20)
        load.wait_until(lambda: all_replicas(endpoint, lambda model: not model["refused"]))
    assert load.failures == []
    assert set(load.versions) == {"zpoint/1", "zpoint/2"}
    log = told()
    assert "serving zpoint/2 in the place of zpoint/1" in log
    assert "zpoint version 3 cannot be served and is refused" in log
    assert "/v1/decode" not in log


@pytest.mark.ray
def test_a_killed_replica_costs_no_more_than_it_held_and_nothing_with_retries(served):
    """HAProxy gives most of what it held to another, and nothing new to the dead one."""
    with RequestLoad(served.url, threads=2) as patient, RequestLoad(served.url, threads=8, retries=False) as plain:
        patient.wait_until(lambda: patient.versions["any"] > 20)
        before = replicas()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        patient.wait_until(lambda: len(set(replicas()) - {before[0]}) == 2, 120)
        seen = patient.versions["any"]
        patient.wait_until(lambda: patient.versions["any"] > seen + 20)
    assert patient.failures == []
    assert len(plain.failures) <= 4  # half of the threads


@pytest.mark.ray
def test_a_new_replica_serves_the_last_good_version_while_the_alias_names_a_bad_one(served, endpoint):
    point_alias_to("2")
    with RequestLoad(served.url, retries=False) as load:
        load.wait_until(lambda: load.versions["zpoint/2"] > 20)
        load.wait_until(lambda: all_replicas(endpoint, lambda model: model["version"] == "2"))
    point_alias_to("3")
    killed = replicas()[0]
    os.kill(killed, signal.SIGKILL)
    with RequestLoad(served.url) as load:
        load.wait_until(lambda: len(set(replicas()) - {killed}) == 2, 120)
    with RequestLoad(served.url) as load:
        load.wait_until(lambda: load.versions["any"] > 50)
        load.wait_until(lambda: all_replicas(endpoint, lambda model: model["refused"]))
    assert endpoint.model()["version"] == "2"
    point_alias_to("1")
    load.wait_until(lambda: all_replicas(endpoint, lambda model: model["version"] == "1"))


@pytest.mark.ray
def test_nothing_listens_beyond_loopback(served):
    addresses = listening_addresses([*replicas(), *haproxies(int(served.url.rpartition(":")[2]))])
    assert len(addresses) >= 4
    assert set(addresses) == {"127.0.0.1"}


@pytest.mark.ray
def test_replicas_are_started_with_two_heaps(served):
    environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in replicas()]
    assert environments
    assert all(b"MALLOC_ARENA_MAX=2" in each for each in environments)


@pytest.mark.ray
def test_only_its_own_routes_are_served(served):
    for path in ("/-/routes", "/-/healthz", "/-/", "/v2/decode"):
        assert httpx2.get(f"{served.url}{path}").status_code in (401, 404)


@pytest.mark.ray
def test_idle_and_slow_clients_do_not_keep_others_waiting(served, endpoint):
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    idle = [socket.create_connection(address) for _ in range(1000)]
    try:
        for each in idle[:50]:  # a head that never ends
            each.sendall(b"POST /v1/decode HTTP/1.1\r\nHost: x\r\n")
        head = f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        for each in idle[50:100]:  # a body that never ends
            each.sendall(b"POST /v1/decode HTTP/1.1\r\nHost: x\r\n" + head.encode() + b'{"z":')
        start = time.perf_counter()
        for _ in range(20):
            assert endpoint.decode(make_z(1)).shape == (1, 16, 16, 3)
        assert time.perf_counter() - start < 10
        idle[0].settimeout(30)
        assert b" 408 " in idle[0].recv(1000).split(b"\r\n")[0]
        idle[50].settimeout(60)
        assert b" 408 " in idle[50].recv(1000).split(b"\r\n")[0]
    finally:
        for each in idle:
            each.close()


@pytest.mark.ray
def test_a_second_endpoint_on_the_same_ray_is_refused(served):
    with pytest.raises(ValueError, match="this Ray serves already"):
        start_endpoint(port=free_port())
    with pytest.raises(ValueError, match="cannot listen at"):
        start_endpoint(port=int(served.url.rpartition(":")[2]))


@pytest.mark.ray
def test_stop_leaves_nothing(ray_cluster, champion):
    stop_endpoint()
    port = free_port()
    start_endpoint(port=port, compiled=True)
    stop_endpoint()
    assert haproxies(port) == []
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.ray
def test_sigterm_while_it_starts_leaves_nothing(ray_cluster, champion, monkeypatch):
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    stop_endpoint()
    monkeypatch.setattr(deployment, "_wait_until_ready", lambda url: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        serve("champion", "127.0.0.1", port := free_port())
    assert haproxies(port) == []
    with pytest.raises(ValueError, match=SERVE_CONTROLLER_NAME):
        ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)


def test_an_open_host_wants_a_token(home):
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        start_endpoint(host="0.0.0.0")


def test_an_alias_that_nothing_has(home):
    with pytest.raises(ValueError, match="no model has the alias 'champion'"):
        find_model_version()


@pytest.mark.ray
def test_the_config_file_for_a_cluster_loads_and_scales(ray_cluster, champion, monkeypatch):
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    text = (Path(haproxy.__file__).parents[1] / "serve.yaml").read_text()
    whole = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert whole.controller_options.runtime_env == {"env_vars": SERVE_ENV}
    described = whole.applications[0]
    build = import_attr(described.import_path)
    deployment = build(described.args)._bound_deployment
    assert deployment._deployment_config.autoscaling_config.max_replicas == 4
    for wrong, message in (({"alias": "nobody"}, "no model has the alias"), ({"port": 1}, "not port")):
        with pytest.raises(ValueError, match=message):
            build(described.args | wrong)
    monkeypatch.delenv("ZPOINT_TOKEN")
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        build(described.args)
