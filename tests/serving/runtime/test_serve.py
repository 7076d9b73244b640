"""A running `zpoint serve` on Ray behind HAProxy, and its client.

The tests share one endpoint of two replicas, in the order of this file; the last ones stop it.
"""

import io
import json
import os
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

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
from serving.runtime import deployment, haproxy, last_served
from serving.runtime.deployment import start_endpoint, stop_endpoint
from serving.runtime.registry import find_model_version
from serving.runtime.replica import ReplicaOptions
from tests.conftest import free_port
from tests.serving.request_load import TOKEN, Z_DIM, RequestLoad, all_replicas, make_z
from tests.sockets import descendants, listening_addresses


def haproxies(port):
    """Return the configurations of the haproxy processes that listen at `port`, by pid."""
    configs = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode().split("\0")
            config = Path(arguments[arguments.index("-f") + 1]).read_text()
            if "haproxy" in arguments[0] and f":{port}\n" in config:
                configs[int(process.name)] = config
        except (OSError, ValueError):
            continue
    return configs


def replica_pids():
    """Return the pids of this Ray's replicas."""
    from ray._private.worker import get_dashboard_url
    from ray.util.state import list_actors

    address = f"http://{get_dashboard_url()}"  # else it queries any Ray on this machine, maybe another test's
    filters = [("class_name", "=", "ServeReplica:zpoint:decoder"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(address=address, filters=filters)]


def actor_names():
    import ray

    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}


def replica_logs():
    """Return the logs of all replicas of this Ray."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    return "".join(path.read_text() for path in Path(get_serve_logs_dir()).glob("replica_zpoint_*.log"))


def set_alias(version):
    tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", version)


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ZPOINT_HOME", str(tmp_path))
    for name in ("ZPOINT_TOKEN", "ZPOINT_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """Register three versions of a random model, alias champion at 1; yield the model and its latent statistics."""
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
        for version_source in (source, source, f"file://{home}/nothing"):  # version 3 does not load
            registry.create_model_version(tracking.MODEL_NAME, version_source)
        registry.set_registered_model_alias(tracking.MODEL_NAME, "champion", "1")
        yield model, latents


@pytest.fixture(scope="module")
def access_log(tmp_path_factory):
    return tmp_path_factory.mktemp("logs") / "access.jsonl"


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def start_statuses(port):
    """Return the status codes that a client gets at the endpoint's port from before its start, until it is 200."""
    statuses, give_up = set(), threading.Event()

    def poll():
        while 200 not in statuses and not give_up.wait(0.02):
            with suppress(httpx2.HTTPError):
                statuses.add(httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code)

    thread = threading.Thread(target=poll)
    thread.start()
    yield statuses
    give_up.set()
    thread.join()


@pytest.fixture(scope="module")
def served(ray_cluster, champion, port, access_log, start_statuses):
    options = ReplicaOptions(access_log=str(access_log))
    try:
        yield start_endpoint(port=port, replicas=(2, 2), options=options)
    finally:
        stop_endpoint()


@pytest.fixture
def client(served):
    with Client(served.url, TOKEN) as client:
        yield client


def decoded(champion, z):
    return champion[0].decode(torch.from_numpy(z)).numpy()


def images_close(images, expected):
    return images.shape == expected.shape and np.abs(images.astype(int) - expected).max() <= 1


@pytest.mark.ray
def test_haproxy_listens_and_the_model_answers(served, port, client, champion):
    [config, *_] = haproxies(port).values()
    assert "timeout client 120s" in config  # a client that reads nothing of its response is disconnected
    assert [(v.alias, v.name, v.version) for v in served.versions] == [("champion", "zpoint", "1")]
    assert {last_served.ACTOR_NAME, "SERVE_CONTROLLER_ACTOR"} <= actor_names()
    version = find_model_version("champion")
    assert last_served.load(version.tracking_uri, "champion") == version
    assert client.model()["metrics"] == {"psnr": 21.0}
    z = make_z(300)
    assert images_close(client.decode(z), decoded(champion, z))
    image = np.asarray(Image.open(io.BytesIO(client.decode_png(z[:1]))))
    assert images_close(image, decoded(champion, z[:1])[0])
    sampled_z = sample("gaussian", 4, champion[1], 5, temperature=0.5).numpy()
    assert images_close(client.sample("gaussian", 4, 5, temperature=0.5), decoded(champion, sampled_z))
    assert client.sample_png(n=4).startswith(b"\x89PNG")


@pytest.mark.ray
def test_an_endpoint_that_starts_answers_503(served, start_statuses, wait_until):
    wait_until(lambda: 200 in start_statuses)
    assert start_statuses == {200, 503}


@pytest.mark.ray
def test_both_replicas_log_requests_with_the_id_of_the_response(served, access_log, wait_until):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    sent = {httpx2.get(f"{served.url}/v1/model", headers=headers).headers["x-request-id"] for _ in range(30)}
    assert len(sent) == 30
    expected = [[id, "/v1/model", 200, "zpoint/1"] for id in sorted(sent)]

    def logged():
        lines = [json.loads(line) for line in access_log.read_text().splitlines()]
        keys = ("request_id", "route", "status", "model")
        return sorted([line[key] for key in keys] for line in lines if line["request_id"] in sent)

    wait_until(lambda: logged() == expected)  # a line is written after its response


@pytest.mark.ray
def test_concurrent_decodes_equal_single_ones(client, champion):
    requests = [make_z(n, seed) for seed, n in enumerate([1, 2, 1, 70, 1, 3] * 8)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(client.decode, requests))
    assert all(images_close(images, decoded(champion, z)) for images, z in zip(results, requests, strict=True))


@pytest.mark.ray
def test_a_refused_request_is_a_value_error(served, client):
    with pytest.raises(ValueError, match="this model takes z_dim 8"):
        client.decode(np.zeros((1, 9)))
    with pytest.raises(ValueError, match="finite"):
        client.decode_png(np.full((1, Z_DIM), np.inf))
    with pytest.raises(ValueError, match="unknown sampler 'magic'"):
        client.sample("magic")
    with pytest.raises(ValueError, match="one request takes 4096 z-points"):
        client.decode_png(np.zeros((10_000_000, Z_DIM), np.float32))
    with Client(served.url, "wrong") as unauthorized, pytest.raises(ValueError, match="Authorization: Bearer"):
        unauthorized.model()
    assert httpx2.get(f"{served.url}/healthz").json() == {"status": "ok"}


@pytest.mark.ray
def test_moving_the_alias_swaps_the_model_without_a_failed_request(served, client):
    with RequestLoad(served.url, retries=False) as load:
        load.wait_until(lambda: load.versions["zpoint/1"] > 20)
        set_alias("2")
        load.wait_until(lambda: load.versions["zpoint/2"] > 20)
        load.wait_until(lambda: all_replicas(client, lambda model: model["version"] == "2"))
        set_alias("3")  # does not load: refused, and version 2 stays
        load.wait_until(lambda: all_replicas(client, lambda model: model["refused"]))
        model = client.model()
        assert (model["version"], model["refused"]["version"]) == ("2", "3")
        assert "nothing" in model["refused"]["reason"]
        set_alias("1")
        count = load.versions["zpoint/1"]
        load.wait_until(lambda: load.versions["zpoint/1"] > count + 20)
        load.wait_until(lambda: all_replicas(client, lambda model: not model["refused"]))
    assert load.failures == []
    assert set(load.versions) == {"zpoint/1", "zpoint/2"}
    logs = replica_logs()
    assert "serving zpoint/2 instead of zpoint/1" in logs
    assert "cannot load zpoint version 3, so it is refused" in logs
    assert "/v1/decode" not in logs


@pytest.mark.ray
def test_a_killed_replica_fails_few_requests_and_none_with_retries(served):
    """Only a request whose answer had begun fails, so at most one of each thread, and none that begins later."""
    with RequestLoad(served.url, threads=2) as retrying, RequestLoad(served.url, threads=8, retries=False) as plain:
        retrying.wait_until(lambda: retrying.versions["any"] > 20)
        assert len(replica_pids()) == 2
        killed = replica_pids()[0]
        os.kill(killed, signal.SIGKILL)
        killed_s = plain.elapsed_s()
        retrying.wait_until(lambda: len(set(replica_pids()) - {killed}) == 2, 120)
        answered = retrying.versions["any"]
        retrying.wait_until(lambda: retrying.versions["any"] > answered + 20)
    assert retrying.failures == []
    assert [failure for failure in plain.failures if failure.began_s > killed_s] == []


@pytest.mark.ray
def test_a_new_replica_serves_the_last_good_version_while_the_alias_names_a_broken_one(served, client):
    set_alias("2")
    with RequestLoad(served.url, retries=False) as load:
        load.wait_until(lambda: load.versions["zpoint/2"] > 20)
        load.wait_until(lambda: all_replicas(client, lambda model: model["version"] == "2"))
    set_alias("3")
    killed = replica_pids()[0]
    os.kill(killed, signal.SIGKILL)
    with RequestLoad(served.url) as load:
        load.wait_until(lambda: len(set(replica_pids()) - {killed}) == 2, 120)
    with RequestLoad(served.url) as load:
        load.wait_until(lambda: load.versions["any"] > 50)
        load.wait_until(lambda: all_replicas(client, lambda model: model["refused"]))
    assert client.model()["version"] == "2"
    set_alias("1")
    load.wait_until(lambda: all_replicas(client, lambda model: model["version"] == "1"))


@pytest.mark.ray
def test_serving_listens_on_loopback_only(served, port, wait_until):
    # A HAProxy that another one has replaced listens no more; it ends after its last connection.
    wait_until(lambda: all(listening_addresses([pid]) for pid in [*replica_pids(), *haproxies(port)]))
    assert {*listening_addresses(descendants(os.getpid()))} == {"127.0.0.1"}


@pytest.mark.ray
def test_replicas_run_with_two_malloc_arenas(served):
    environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in replica_pids()]
    assert environments
    assert all(b"MALLOC_ARENA_MAX=2" in environment for environment in environments)


@pytest.mark.ray
def test_serving_answers_only_own_routes(served):
    for path in ("/-/routes", "/-/healthz", "/-/", "/v2/decode"):
        assert httpx2.get(f"{served.url}{path}").status_code in (401, 404)
    assert httpx2.get(f"{served.url}/-/routes").status_code == 404


@pytest.mark.ray
def test_idle_and_slow_clients_do_not_delay_others(port, client):
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
    try:
        for connection in connections[:50]:  # endless headers
            connection.sendall(b"POST /v1/decode HTTP/1.1\r\nHost: x\r\n")
        head = f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        for connection in connections[50:100]:  # an endless body
            connection.sendall(b"POST /v1/decode HTTP/1.1\r\nHost: x\r\n" + head.encode() + b'{"z":')
        for _ in range(5):
            assert client.decode(make_z(1)).shape == (1, 16, 16, 3)
        assert not select.select([connections[0], connections[50]], [], [], 0)[0]  # they have not timed out yet
        connections[0].settimeout(120)
        assert b" 408 " in connections[0].recv(1000).split(b"\r\n")[0]
        connections[50].settimeout(120)
        assert b" 408 " in connections[50].recv(1000).split(b"\r\n")[0]
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.ray
def test_a_second_endpoint_on_the_same_ray_is_refused(served, port):
    with pytest.raises(ValueError, match="this Ray serves already"):
        start_endpoint(port=free_port())
    with pytest.raises(ValueError, match="cannot listen at"):
        start_endpoint(port=port)


@pytest.mark.ray
def test_the_config_file_for_a_cluster_loads_and_scales(ray_cluster, champion, monkeypatch):
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    text = (Path(haproxy.__file__).parents[1] / "serve.yaml").read_text()
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    application = config.applications[0]
    build = import_attr(application.import_path)
    bound = build(application.args)._bound_deployment
    assert bound._deployment_config.autoscaling_config.max_replicas == 4
    for wrong, message in (({"alias": "nobody"}, "no model has the alias"), ({"port": 1}, "not port")):
        with pytest.raises(ValueError, match=message):
            build(application.args | wrong)
    monkeypatch.delenv("ZPOINT_TOKEN")
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        build(application.args)


@pytest.mark.ray
def test_stop_leaves_no_process_port_or_actor(served, port, wait_until):
    stop_endpoint()
    wait_until(lambda: haproxies(port) == {}, 30)  # it ends with the proxy's process, which Ray has killed
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert not {last_served.ACTOR_NAME, "SERVE_CONTROLLER_ACTOR"} & actor_names()


@pytest.mark.ray
@pytest.mark.parametrize("step", ["_run_application", "_wait_until_ready"])  # while Serve's proxies start, and after
def test_sigterm_during_the_start_leaves_nothing(ray_cluster, champion, monkeypatch, wait_until, step):
    stop_endpoint()
    monkeypatch.setattr(deployment, step, lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        serve(["champion"], "127.0.0.1", port := free_port())
    wait_until(lambda: haproxies(port) == {}, 30)
    assert not {last_served.ACTOR_NAME, "SERVE_CONTROLLER_ACTOR"} & actor_names()


@pytest.mark.ray
def test_an_interrupt_before_the_controller_runs_leaves_nothing(ray_cluster, champion, monkeypatch):
    answers = iter([SimpleNamespace(proxies={}), KeyboardInterrupt()])  # of no running Serve; then it is interrupted

    def status() -> SimpleNamespace:
        answer = next(answers)
        if isinstance(answer, KeyboardInterrupt):
            raise answer
        return answer

    monkeypatch.setattr("ray.serve.status", status)
    with pytest.raises(KeyboardInterrupt):
        start_endpoint(port=free_port())
    assert "SERVE_CONTROLLER_ACTOR" not in actor_names()


@pytest.mark.ray
def test_a_start_of_serve_that_fails_raises_its_reason(ray_cluster, champion, monkeypatch):
    def fail(**_):
        raise TimeoutError("HTTP proxies not available after 60s.")

    monkeypatch.setattr("ray.serve.start", fail)
    with pytest.raises(TimeoutError, match="HTTP proxies not available"):
        start_endpoint(port=free_port())
    assert "SERVE_CONTROLLER_ACTOR" not in actor_names()


def test_an_open_host_needs_a_token(empty_home):
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        start_endpoint(host="0.0.0.0")


@pytest.mark.usefixtures("tracking")
def test_an_unassigned_alias_raises():
    with pytest.raises(ValueError, match="no model has the alias 'champion'"):
        find_model_version()
