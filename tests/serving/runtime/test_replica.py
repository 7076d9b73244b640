"""The models and the runtime environment of a replica, without Ray."""

import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from jobs.commands.serve import serve
from serving.runtime import deployment, haproxy, last_served, registry, replica
from serving.runtime.last_served import LastServedVersions
from serving.runtime.registry import ModelVersion, UnknownAliasError
from serving.runtime.replica import ReplicaOptions

DEPLOYED = ModelVersion("zpoint", "1", "champion", "run-1", "/models/1", "sqlite:///a.db")
LAST_SERVED, ALIASED = replace(DEPLOYED, version="2"), replace(DEPLOYED, version="3")


def fail(*_):
    raise ConnectionError("nothing answers")


@pytest.mark.parametrize(
    ("find", "load", "versions", "log"),
    [
        (lambda alias: ALIASED, lambda *_: LAST_SERVED, "321", ""),
        (lambda alias: ALIASED, lambda *_: None, "13", ""),  # the first replica
        (lambda alias: DEPLOYED, lambda *_: None, "1", ""),
        (lambda alias: DEPLOYED, lambda *_: DEPLOYED, "1", ""),
        (fail, lambda *_: LAST_SERVED, "21", "cannot resolve alias 'champion': nothing answers"),
        (lambda alias: ALIASED, fail, "31", "cannot read the last served version: nothing answers"),
        (fail, fail, "1", "nothing answers"),
    ],
)
def test_new_replica_tries_the_aliased_then_the_last_served_then_the_deployed_version(
    monkeypatch, caplog, find, load, versions, log
):
    monkeypatch.setattr(replica, "find_model_version", find)
    monkeypatch.setattr(last_served, "load", load)
    assert "".join(version.version for version in replica._candidates(DEPLOYED)) == versions
    assert log in caplog.text


def test_the_first_replica_does_not_wait_for_mlflow(monkeypatch):
    monkeypatch.setattr(replica, "find_model_version", lambda alias: pytest.fail("asked MLflow"))
    monkeypatch.setattr(last_served, "load", lambda *_: None)
    assert next(replica._candidates(DEPLOYED)) == DEPLOYED


def test_last_served_version_is_kept_for_each_tracking_server_and_alias():
    versions = LastServedVersions()
    others = replace(DEPLOYED, alias="challenger", version="5"), replace(DEPLOYED, tracking_uri="http://b", version="6")
    for version in (DEPLOYED, *others, LAST_SERVED):
        versions.set(version)
    assert versions.get("sqlite:///a.db", "champion") == LAST_SERVED
    assert [versions.get(v.tracking_uri, v.alias) for v in others] == [*others]
    assert versions.get("http://b", "challenger") is None


def test_replica_keeps_the_jobs_runtime_environment(monkeypatch):
    import ray

    job_env = {"py_modules": ["gcs://a.zip"], "env_vars": {"AWS_REGION": "eu-west-1", "MALLOC_ARENA_MAX": "8"}}
    context = SimpleNamespace(runtime_env=SimpleNamespace(to_dict=lambda: job_env))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert replica._replica_runtime_env() == {
        "py_modules": ["gcs://a.zip"],
        "env_vars": {
            "AWS_REGION": "eu-west-1", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "134217728",
            "MALLOC_TRIM_THRESHOLD_": "268435456",
        },
    }  # fmt: skip


def test_config_file_for_a_cluster_needs_a_token_and_known_arguments(monkeypatch):
    monkeypatch.setattr(registry, "find_model_version", lambda alias: replace(DEPLOYED, alias=alias))
    monkeypatch.setattr(replica, "build_application", lambda *arguments: arguments)
    with pytest.raises(ValueError, match="set ZPOINT_TOKEN"):
        replica.app({})
    monkeypatch.setenv("ZPOINT_TOKEN", "secret")
    assert replica.app({}) == ([DEPLOYED], "secret", (1, 1), ReplicaOptions())
    assert replica.app({"min_replicas": 2})[2] == (2, 2)
    arguments = {
        "alias": "challenger", "min_replicas": 2, "max_replicas": 4, "access_log": "/a.jsonl",
        "cors_origins": "https://a.org",
    }  # fmt: skip
    options = ReplicaOptions(("https://a.org",), "/a.jsonl")
    assert replica.app(arguments) == ([replace(DEPLOYED, alias="challenger")], "secret", (2, 4), options)
    aliases = ["champion", "near-ae"]
    assert replica.app({"alias": aliases})[0] == [replace(DEPLOYED, alias=alias) for alias in aliases]
    for wrong in ([], ["champion", "champion"]):
        with pytest.raises(ValueError, match="name each once, at least one"):
            replica.app({"alias": wrong})
    with pytest.raises(ValueError, match=r"args take alias, wait_for_alias, .* and access_log, not port"):
        replica.app({"port": 1})


def test_an_application_waits_for_an_alias_if_told_to(monkeypatch, caplog):
    """On Kubernetes: Ray Serve never builds an application again that failed, and KubeRay does not send it again."""
    from mlflow.exceptions import MlflowException

    answers = iter(
        [MlflowException("no answer of http://user:pw@mlflow"), *[UnknownAliasError("no model")] * 2, DEPLOYED]
    )

    def find_model_version(alias: str) -> ModelVersion:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pauses: list[float] = []
    monkeypatch.setattr(registry, "find_model_version", find_model_version)
    monkeypatch.setattr(registry.time, "sleep", pauses.append)
    monkeypatch.setattr(replica, "build_application", lambda *arguments: arguments)
    monkeypatch.setenv("ZPOINT_TOKEN", "secret")
    assert replica.app({"wait_for_alias": True})[0] == [DEPLOYED]
    assert pauses == [registry.ALIAS_POLL_S] * 3
    assert caplog.messages == [
        "waiting for the model to serve: no answer of http://***@mlflow",
        "waiting for the model to serve: no model",
    ]
    with pytest.raises(ValueError, match="name each once, at least one"):
        replica.app({"wait_for_alias": True, "alias": []})


@pytest.mark.parametrize("origin", ["https://example.org", "http://localhost:3000", "http://[::1]:3000"])
def test_cors_takes_an_origin(origin):
    assert ReplicaOptions(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin", ["*", "null", "", "example.org", "https://example.org/", "ftp://a", "https://*.a.org"]
)
def test_cors_takes_nothing_that_admits_other_pages(origin):
    with pytest.raises(ValueError, match="a CORS origin is http"):
        ReplicaOptions(cors_origins=("https://a.org", origin))


def test_a_changed_deployment_starts_new_replicas_before_it_stops_old_ones(monkeypatch):
    import ray
    from ray import serve

    deployments = []
    monkeypatch.setattr(serve, "ingress", lambda: lambda replica_class: replica_class)
    monkeypatch.setattr(serve, "deployment", lambda *_, **options: deployments.append(options) or MagicMock())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(replica, "_replica_runtime_env", dict)
    replica.build_application([DEPLOYED], "secret", (1, 4), ReplicaOptions())
    assert 0 < deployments[0]["max_surge_percent"] <= 100
    assert deployments[0]["autoscaling_config"]["max_replicas"] == 4


@pytest.fixture
def on_cluster(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes this process one on node `here` of a cluster whose head has `cpus`."""
    import ray

    def connect(here: str, cpus: int) -> None:
        head = {"NodeID": "head", "Alive": True, "Resources": {"node:__internal_head__": 1.0, "CPU": cpus}}
        worker = {"NodeID": "w1", "Alive": True, "Resources": {"CPU": 8}}
        monkeypatch.setattr(ray, "nodes", lambda: [worker, head])
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: here))

    return connect


def test_replicas_run_where_haproxy_reaches_them(on_cluster):
    """Those that listen at loopback or one address of the head are on the head, others anywhere."""
    on_cluster("head", 2)
    assert deployment._pin_to_head("127.0.0.1", 2)
    assert deployment._pin_to_head("10.0.0.5", 1)
    assert not deployment._pin_to_head("0.0.0.0", 8)
    with pytest.raises(ValueError, match=r"3 replica\(s\) that listen at 127.0.0.1 .* has 2 CPUs: set ZPOINT_TOKEN"):
        deployment._pin_to_head("127.0.0.1", 3)


def test_serving_elsewhere_than_on_the_head_is_refused(on_cluster):
    on_cluster("w1", 2)
    with pytest.raises(ValueError, match="not the head node of the cluster, where HAProxy listens"):
        deployment._pin_to_head("0.0.0.0", 1)


def test_endpoints_of_one_user_do_not_share_haproxys_wrapper(on_cluster, monkeypatch, tmp_path):
    """The wrapper runs the code of the checkout that started the endpoint, also at each reload."""
    monkeypatch.setattr(deployment, "_haproxy_folder", lambda: tmp_path / "zpoint")
    scripts = []
    for node in ("a", "b"):
        on_cluster(node, 2)
        monkeypatch.setattr(haproxy, "__file__", f"/checkout-{node}/haproxy.py")
        scripts.append(Path(deployment._controller_env()["RAY_SERVE_HAPROXY_BINARY_PATH"]))
    assert ["/checkout-a/" in scripts[0].read_text(), "/checkout-b/" in scripts[1].read_text()] == [True, True]
    monkeypatch.setattr(deployment, "shut_down_serve", lambda timeout_s: None)
    monkeypatch.setattr(deployment.last_served, "forget_all", lambda: None)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    deployment.stop_endpoint()
    assert [script.exists() for script in scripts] == [True, False]


def test_an_endpoint_behind_serves_slow_proxy_is_not_ready(monkeypatch):
    import httpx2

    answers = [httpx2.Response(200, headers={"x-zpoint-fallback": "python-proxy"})] * 2 + [httpx2.Response(200)]
    monkeypatch.setattr(httpx2, "get", lambda url, **_: answers.pop(0))
    deployment._wait_until_ready("http://h")
    assert answers == []
    monkeypatch.setattr(httpx2, "get", lambda url, **_: httpx2.Response(200, headers={"x-zpoint-fallback": "x"}))
    monkeypatch.setattr(deployment, "START_TIMEOUT_S", 0.2)
    with pytest.raises(RuntimeError, match=r"reaches no replica .* open ports 30000 to 31000"):
        deployment._wait_until_ready("http://h")


def test_port_in_use_is_refused_before_serve_starts(monkeypatch):
    monkeypatch.setattr(deployment, "find_model_versions", lambda aliases: [DEPLOYED])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        in_use = (
            f"cannot listen at 127.0.0.1 port {port}: it is in use; stop what listens there, or give another --port"
        )
        with pytest.raises(ValueError, match=in_use):
            deployment.start_endpoint(port=port)
        monkeypatch.setattr("jobs.commands.serve.connect", lambda **_: pytest.fail("Ray was started first"))
        with pytest.raises(ValueError, match=in_use):
            serve(["champion"], "127.0.0.1", port)
    with pytest.raises(ValueError, match="port 70000"):
        deployment.start_endpoint(port=70_000)
