"""`zpoint deploy` against a fake of Ray Serve's REST API; tests/hosts has a real one."""

from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from jobs.commands import deploy as deploy_module
from jobs.commands.deploy import delete_deployment, deploy, deployment_status, make_config

Application = dict[str, Any]


class FakeServe:
    """Ray's ServeSubmissionClient: `states` are the application's after a deployment, one a request; the last stays."""

    def __init__(self, *states: str, message: str = "") -> None:
        self.states, self.message, self.config = list(states), message, {}
        self.deployments = 0

    def deploy_applications(self, config: dict[str, Any]) -> None:
        ServeDeploySchema.model_validate(config)
        self.config, self.deployments = config, self.deployments + 1

    def delete_applications(self) -> None:
        self.config = {}

    def get_serve_details(self) -> dict[str, Any]:
        if not self.config:
            return {"applications": {}, "proxies": {}, "http_options": None}
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        deployment = {"message": self.message, "replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]}
        application = {
            "status": state, "message": "", "last_deployed_time_s": self.deployments,
            "deployments": {"decoder": deployment}, "deployed_app_config": self.config["applications"][0],
        }  # fmt: skip
        proxies = {"a": {"node_ip": "10.0.0.6"}, "b": {"node_ip": "10.0.0.5"}}
        return {
            "applications": {"zpoint": application},
            "proxies": proxies,
            "http_options": self.config["http_options"],
        }


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes a FakeServe the cluster's."""

    def use(serve: FakeServe) -> FakeServe:
        monkeypatch.setattr(deploy_module, "_connect", lambda address: (serve, "http://head:8265"))
        monkeypatch.setattr(deploy_module, "POLL_INTERVAL_S", 0)
        return serve

    return use


def test_the_endpoint_is_awaited_and_described(connect, capsys):
    serve = connect(FakeServe("DEPLOYING", "DEPLOYING", "RUNNING"))
    assert deployment_status() == {"address": "http://head:8265", "status": "NOT_STARTED"}
    assert deploy(["champion", "near-ae"], 8001, (1, 4), cors_origins=["https://a.org"]) == {
        "address": "http://head:8265", "status": "RUNNING", "message": "", "aliases": ["champion", "near-ae"],
        "replicas": 1, "urls": ["http://10.0.0.5:8001", "http://10.0.0.6:8001"],
    }  # fmt: skip
    assert capsys.readouterr().err == "zpoint: the endpoint is DEPLOYING\n"
    assert serve.config["applications"][0]["args"] == {
        "alias": ["champion", "near-ae"], "min_replicas": 1, "max_replicas": 4,
        "cors_origins": ["https://a.org"], "access_log": "",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"listens at port 8001.*`zpoint deploy delete`"):
        deploy(["champion"], 8000, (1, 1))
    assert delete_deployment()["status"] == deployment_status()["status"] == "NOT_STARTED"


def test_the_state_of_the_deployment_before_counts_not(connect, monkeypatch: pytest.MonkeyPatch):
    serve = connect(FakeServe("RUNNING"))
    deploy(["champion"], 8000, (1, 1))
    monkeypatch.setattr(FakeServe, "deploy_applications", lambda self, config: None)
    monkeypatch.setattr(deploy_module, "START_TIMEOUT_S", 0)
    with pytest.raises(RuntimeError, match="the endpoint is RUNNING after 0 s: no reason given"):
        deploy(["champion"], 8000, (2, 2))
    assert serve.deployments == 1


@pytest.mark.parametrize("state", ["DEPLOY_FAILED", "UNHEALTHY"])
def test_an_endpoint_that_does_not_start_gives_the_exception(connect, state: str):
    connect(FakeServe("DEPLOYING", state, message="Traceback\n  File\nValueError: no alias 'champion'\n"))
    with pytest.raises(RuntimeError, match=rf"does not start \({state}\): ValueError: no alias 'champion'"):
        deploy(["champion"], 8000, (1, 1))


def test_a_change_that_fails_leaves_the_replicas_from_before(connect):
    connect(FakeServe("RUNNING", "RUNNING", "RUNNING", "DEPLOYING", "DEPLOY_FAILED"))
    deploy(["champion"], 8000, (1, 1))
    with pytest.raises(RuntimeError, match=r"DEPLOY_FAILED.*; the replicas from before go on serving"):
        deploy(["other"], 8000, (1, 1))


def test_a_wait_for_resources_is_told(connect, capsys):
    waiting = "Deployment has 1 replicas that have taken more than 30s to be scheduled. This may"
    connect(FakeServe("DEPLOYING", "RUNNING", message=waiting))
    deploy(["champion"], 8000, (1, 1))
    assert "for lack of a free CPU or GPU: stop a job (`zpoint jobs`" in capsys.readouterr().err


def test_a_node_without_keys_is_named(connect):
    connect(FakeServe("DEPLOY_FAILED", message="Trace\nOSError: reading key 'x': AWS Error ACCESS_DENIED: No body.\n"))
    with pytest.raises(RuntimeError, match=r"a node does not read the model: access denied.*set AWS_\*"):
        deploy(["champion"], 8000, (1, 1))


def test_no_secret_is_in_the_configuration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all")
    monkeypatch.setenv("ZPOINT_TOKEN", "not-for-all")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:not-for-all@mlflow:5000")
    monkeypatch.setenv("ZPOINT_STORE", "s3://bucket/store")
    config = make_config(8000, {})
    assert config["applications"][0]["runtime_env"]["env_vars"]["ZPOINT_STORE"] == "s3://bucket/store"
    assert "not-for-all" not in str(config)
    assert "ZPOINT_HOME" not in str(config)
