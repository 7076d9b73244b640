"""`zpoint deploy`: the endpoint of a cluster by Ray Serve's REST API, which goes on without this command.

What is deployed is serving/serve.yaml with the options of the command. The nodes have the code, the keys of S3 and
ZPOINT_TOKEN; the variables that hold no secret go with the application.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from cluster.dashboard import connect_dashboard
from cluster.settings import exported_env, split_secrets
from cluster.storage import describe_s3_error
from serving.runtime.deployment import APP_NAME, read_serve_config

START_TIMEOUT_S = 300.0  # to start processes on nodes, download, load and warm up the model
POLL_INTERVAL_S = 1.0
ENDED = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")


def deploy(
    aliases: Sequence[str], port: int, replicas: tuple[int, int], address: str | None = None, *,
    cors_origins: Sequence[str] = (), access_log: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Start the endpoint of the cluster at `address`, or change it to these options; wait until it serves.

    `replicas`: (min, max) processes, by the number of requests in progress. `access_log` is a path on each node.
    Returns as `deployment_status`. Raises ValueError if no dashboard answers, RuntimeError if the endpoint does not
    start.
    """
    args = {
        "alias": list(aliases), "min_replicas": replicas[0], "max_replicas": replicas[1],
        "cors_origins": list(cors_origins), "access_log": access_log,
    }  # fmt: skip
    client, url = _connect(address)
    details = client.get_serve_details()
    running_port = (details.get("http_options") or {}).get("port", port)
    if details["proxies"] and running_port != port:
        raise ValueError(
            f"the endpoint listens at port {running_port}, not changed by Ray Serve: `zpoint deploy delete` first"
        )
    previous = details["applications"].get(APP_NAME, {})
    client.deploy_applications(make_config(port, args))
    deadline, printed = time.monotonic() + START_TIMEOUT_S, ""
    while True:
        application = _application(client)
        status = application.get("status", "NOT_STARTED")
        if application.get("last_deployed_time_s") != previous.get("last_deployed_time_s") and status in ENDED:
            break
        if time.monotonic() > deadline:
            reason = f"{status} after {START_TIMEOUT_S:.0f} s: {_reason(application)}"
            raise RuntimeError(f"the endpoint is {reason}; Ray Serve goes on trying: see `zpoint deploy status`")
        line = f"the endpoint is {status}"
        if "to be scheduled" in _reason(application):  # Serve has waited for half a minute
            line += ", for lack of a free CPU or GPU: stop a job (`zpoint jobs`, `zpoint stop ID`), or add a node"
        if line != printed:
            printed = line
            print(f"zpoint: {line}", file=sys.stderr, flush=True)
        time.sleep(POLL_INTERVAL_S)
    if status != "RUNNING":
        # Serve keeps them, though it lists none of an application that it could not build.
        fate = "; the replicas from before go on serving" if previous.get("status") == "RUNNING" else ""
        raise RuntimeError(f"the endpoint does not start ({status}): {_reason(application)}{fate}")
    return _describe(client.get_serve_details(), url)


def deployment_status(address: str | None = None) -> dict[str, Any]:
    """Return the endpoint's status, its options, its number of replicas and the addresses at which it listens."""
    client, url = _connect(address)
    return _describe(client.get_serve_details(), url)


def delete_deployment(address: str | None = None) -> dict[str, Any]:
    """Stop the endpoint of the cluster, and Ray Serve with it."""
    client, url = _connect(address)
    client.delete_applications()
    return {"address": url, "status": "NOT_STARTED"}


def make_config(port: int, args: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of Ray Serve's REST API: that of serving/serve.yaml with this port and these `args`."""
    config = read_serve_config()
    config["http_options"]["port"] = port
    [application] = config["applications"]
    application["args"] = args
    environment = {name: text for name, text in exported_env().items() if name != "ZPOINT_HOME"}  # of this machine
    application["runtime_env"] = {"env_vars": split_secrets(environment)[0]}
    return config


def _connect(address: str | None) -> tuple[Any, str]:
    def make_client(url: str) -> Any:
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        return ServeSubmissionClient(url)

    return connect_dashboard(make_client, address)


def _application(client: Any) -> dict[str, Any]:
    return client.get_serve_details()["applications"].get(APP_NAME, {})


def _reason(application: dict[str, Any]) -> str:
    """Return the last line of the application's message, or of its deployment's, which end with the exception."""
    messages = [application.get("message", ""), *(d["message"] for d in application.get("deployments", {}).values())]
    lines = [line for message in messages for line in message.strip().splitlines()[-1:]]
    if not lines:
        return "no reason given"
    if "AWS Error" in lines[-1]:
        return (
            f"a node does not read the model: {describe_s3_error(OSError(lines[-1]))}; set AWS_* where Ray is started"
        )
    return lines[-1]


def _describe(details: dict[str, Any], url: str) -> dict[str, Any]:
    application = details["applications"].get(APP_NAME, {})
    if not application:
        return {"address": url, "status": "NOT_STARTED"}
    replicas = [replica for d in application["deployments"].values() for replica in d["replicas"]]
    port = (details.get("http_options") or {}).get("port")
    hosts = sorted({proxy["node_ip"] for proxy in details["proxies"].values()})
    return {
        "address": url,
        "status": application["status"],
        "message": _reason(application) if application["status"] != "RUNNING" else "",
        "aliases": (application.get("deployed_app_config") or {}).get("args", {}).get("alias", []),
        "replicas": sum(replica["state"] == "RUNNING" for replica in replicas),
        "urls": [f"http://{host}:{port}" for host in hosts],
    }
