"""Every private name, monkeypatch and environment trick of Ray that zpoint still needs, one function for each.

Ray is pinned to one minor version in pyproject.toml. Each docstring says what a user suffers without the function, the
test that fails then, and what would let it go. tests/test_private_names.py allows private names in this module alone.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

log = logging.getLogger(__name__)
_environment_lock = threading.RLock()
SLOW_START_S = 30.0  # after which Ray itself gives up
DASHBOARD_MODULES = (  # all of Ray 2.60 but UsageStatsHead
    "DataHead", "JobHead", "MetricsHead", "NodeHead", "PlatformEventsHead", "ReportHead", "ServeHead", "StateHead",
    "TaskEventsHead", "TrainHead",
)  # fmt: skip


def use_loopback(enabled: bool) -> None:
    """Make the Ray that this process starts or joins next use 127.0.0.1 as this machine's address, if `enabled`.

    Without it: a local Ray listens on every interface of the machine, and runs whatever code reaches it; a Ray that
    listens on 127.0.0.1 alone cannot be joined by that address, since Ray replaces it by the machine's outward one.
    Test: tests/cluster/test_ray_connection.py::test_a_local_ray_listens_on_loopback_only.
    Goes when: `ray.init` takes the address to bind (asked for in https://github.com/ray-project/ray/issues/22732).
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0" if enabled else "1"  # read when Ray is imported
    if "ray" in sys.modules:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = not enabled


def slow_down_metrics() -> None:
    """Keep a Ray that this process starts from sending and measuring metrics for a Prometheus that is not there.

    Without it: every 10 s each process sends Ray's metrics for about 100 ms, every 5 s the dashboard measures itself
    for 80 ms and its agent all workers for 20 ms; the endpoint answers late each time. Its own /metrics are separate.
    Test: tests/cluster/test_ray_connection.py::test_the_local_ray_rarely_measures_itself.
    Goes when: `ray.init` has an option to switch them off.
    """
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    os.environ.setdefault("METRICS_RECORD_INTERVAL_S", "86400")
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")


def ignore_uv_run() -> None:
    """Keep Ray from starting workers by the command `uv run` of this process' parent, unless the user asks for it.

    Without it: `uv run zpoint ...` fails in a subfolder of the project, since the workers' working directory has no
    pyproject.toml, and in a project beyond Ray's limit of 512 MiB for uploads. zpoint sends its code itself.
    Test: tests/cluster/test_ray_connection.py::test_a_parent_process_uv_run_changes_nothing.
    Goes when: Ray uploads nothing for `uv run` on a local Ray.
    """
    enabled = os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # read when Ray is imported
    if "ray" in sys.modules and enabled == "0":
        from ray._private import ray_constants

        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False


@contextmanager
def without_usage_stats() -> Iterator[None]:
    """Start the dashboard of a Ray that is started inside the block without its module for usage statistics.

    Without it: the module asks 169.254.169.254 and metadata.google.internal for the cloud, at each start and even if
    the statistics are disabled: RAY_USAGE_STATS_ENABLED=0 only keeps it from sending them.
    Test: tests/jobs/commands/test_demo.py.
    Goes when: UsageStatsHead checks RAY_USAGE_STATS_ENABLED before it looks for the cloud.
    """
    from ray._private import ray_constants, services

    start_ray_process = services.start_ray_process

    def start(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            command = [*command, f"--modules-to-load={','.join(DASHBOARD_MODULES)}"]
        return start_ray_process(command, process_type, *args, **kwargs)

    services.start_ray_process = start
    try:
        yield
    finally:
        services.start_ray_process = start_ray_process


@contextmanager
def wait_longer_for_start(timeout_s: float) -> Iterator[None]:
    """Give a Ray that is started inside the block `timeout_s` seconds; log it if Ray's own 30 s are not enough.

    Without it: `ray.init` fails on a busy machine, whose processes take longer to import Ray, and leaves them running.
    Test: tests/cluster/test_ray_connection.py::test_a_slow_start_is_waited_for_and_logged.
    Goes when: `ray.init` takes the time to wait for its node.
    """
    from ray._private import ray_constants, services

    for name in ("RAY_gcs_server_port_wait_time_s", "RAY_worker_register_timeout_seconds"):
        os.environ.setdefault(name, f"{timeout_s:.0f}")
    os.environ.setdefault("RAY_agent_register_timeout_ms", f"{timeout_s * 1000:.0f}")
    os.environ.setdefault("RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT", f"{timeout_s:.0f}")
    dashboard_timeout_s, get_node = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S, services.get_node
    start_ray_process, raylets = services.start_ray_process, []

    def start(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        info = start_ray_process(command, process_type, *args, **kwargs)
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            raylets.append(info.process)
        return info

    def wait_for_node(gcs_address: str, node_id: str) -> Any:
        started, logged = time.monotonic(), False
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:  # it has not registered
                elapsed_s = time.monotonic() - started
                if any(raylet.poll() is not None for raylet in raylets):
                    raise ChildProcessError("Ray's node process, raylet, exited during its start") from None
                if elapsed_s > timeout_s:
                    raise TimeoutError(f"Ray did not start within {timeout_s:.0f} s: the machine is too busy") from None
                if elapsed_s > SLOW_START_S and not logged:
                    log.warning("Ray has not started after %.0f s; waiting up to %.0f s", elapsed_s, timeout_s)
                    logged = True
                time.sleep(0.1)

    services.get_node, services.start_ray_process = wait_for_node, start
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = max(dashboard_timeout_s, int(timeout_s))
    try:
        yield
    finally:
        services.get_node, services.start_ray_process = get_node, start_ray_process
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = dashboard_timeout_s


@contextmanager
def ray_api_address(address: str) -> Iterator[None]:
    """Point Ray's API clients in this process at `address`, a URL or host:port, inside the block.

    Ray prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to the address that a client is constructed with, and without
    either takes any Ray that it finds on this machine. One thread at a time holds the variable: others wait.
    Without it: `zpoint submit --address URL` sends the job to the cluster that RAY_ADDRESS names.
    Test: tests/jobs/commands/test_submit.py::test_two_threads_leave_no_api_address_behind.
    Goes when: Ray's clients prefer the address that they are constructed with.
    """
    name = "RAY_API_SERVER_ADDRESS"
    with _environment_lock:
        previous = os.environ.get(name)
        os.environ[name] = address
        try:
            yield
        finally:
            os.environ.pop(name, None)
            if previous is not None:
                os.environ[name] = previous


def fetch_actors(client: Any) -> list[dict[str, Any]]:
    """Return the actors, also ended ones, of the cluster of a JobSubmissionClient: jobId, startTime in ms and so on.

    None are returned if the dashboard fails: hours are worth no failed command.
    Without it: `zpoint jobs` shows no GPU hours, since the state API of Ray has no times of actors.
    Test: tests/jobs/commands/test_submit.py::test_a_job_runs_in_the_submitters_folder.
    Goes when: `ray.util.state.list_actors` returns the times of an actor's start and end.
    """
    try:
        response = client._do_request("GET", "/logical/actors?nocache=1")  # its cache may be old
        return list(response.json()["data"]["actors"].values())
    except Exception as error:
        log.debug("cannot list the actors: %s", error)
        return []


def fetch_session_name(client: Any) -> str:
    """Return the session of the Ray of a JobSubmissionClient, as in session_2026-11-30_19-28-14_108891_14714.

    The folder of Ray's sockets on its head has this name.
    Without it: a job that `zpoint submit` sends through `kubectl port-forward` or `ray dashboard` fails, since it
    starts in the submitter's folder, which the remote head does not have.
    Test: tests/jobs/commands/test_submit.py::test_a_job_runs_in_the_submitters_folder.
    Goes when: a public method of Ray's client returns the session, or the host of the head.
    """
    return client._do_request("GET", "/api/version").json()["session_name"]


def fetch_dashboard_port(address: str, timeout_s: float) -> str:
    """Return the port of the dashboard of the Ray whose head is at `address`, host:port; "" if it has none.

    Without it: with `RAY_ADDRESS=host:6380` of a second Ray on a host, `zpoint submit`, `stop` and `deploy` change the
    first one, whose dashboard has the port 8265. `JobSubmissionClient(address)` takes the host that the head reports,
    which may be its loopback.
    Test: tests/jobs/commands/test_submit.py::test_the_address_of_the_head_leads_to_its_dashboard.
    Goes when: a public function of Ray returns the address of a head's dashboard.
    """
    from ray._private import ray_constants
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    key, namespace = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
    reported = GcsClient(address=address).internal_kv_get(key, namespace=namespace, timeout=timeout_s)
    return (reported or b"").decode().rpartition(":")[2]


def log_ray_messages() -> None:
    """Send what Ray prints of lost nodes and of killed actors to this module's logger instead of stdout.

    Without it: the last line that `zpoint train --json` or `zpoint ingest --json` writes to stdout is Ray's, if a node
    was lost meanwhile or an actor with a task was killed.
    Tests:
    tests/cluster/test_ray_connection.py::test_a_local_ray_prints_nothing_and_its_workers_have_the_given_niceness,
    tests/faults/test_train_faults.py::test_training_resizes_with_the_cluster_and_survives_a_killed_worker.
    Goes when: `log_to_driver=False` holds for Ray's own messages too.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda data, **_: log.debug("message of Ray: %s", data["lines"])


def own_state_api() -> AbstractContextManager[None]:
    """Return a context in which Ray Train's processes query the state API of the connected Ray.

    Without it: on a machine with a second Ray, the process that frees a killed training's CPUs asks that one for the
    training's controller, takes it for dead and ends the workers of a healthy training.
    Test: tests/jobs/train/test_train_on_ray.py::test_another_ray_on_the_machine_disturbs_nothing.
    Goes when: Ray Train's PlacementGroupCleaner passes the address of its own cluster to the state API.
    """
    import ray
    from ray.train.v2._internal import constants

    constants.ENV_VARS_TO_PROPAGATE.add("RAY_API_SERVER_ADDRESS")
    return ray_api_address(ray.get_runtime_context().gcs_address)


def set_run_id(trainer: Any, run_id: str) -> None:
    """Set the run id of a Ray Train trainer to one that each driver of the same training has.

    Without it: after `kill -9` of a driver, Ray keeps the CPUs that the elastic training had reserved for 180 s, and
    the same command waits as long before it resumes. With the same run id it takes over the reservation.
    Test: tests/faults/test_train_faults.py::test_training_survives_a_killed_driver_a_preempted_node_and_ctrl_c.
    Goes when: `ray.train.RunConfig` takes a run id, or Ray frees the reservation of a dead controller.
    """
    object.__setattr__(trainer.train_run_context, "run_id", run_id)  # it is a frozen dataclass


def end_worker_groups(before_shutdown: Callable[[], None], timeout_s: float) -> Any:
    """Return a Ray Train callback that ends each worker group, after a call of `before_shutdown` in its workers.

    Without it: Ctrl-C, a change of the number of workers and the loss of a node each cost the steps since the last
    checkpoint. `ray.train.UserCallback` has no such hook. The call comes before TorchTrainer destroys the process
    group, which the last checkpoint needs. `before_shutdown` must be importable in the worker. And if a worker dies as
    it receives its training loop, the controller fails without ending the group: the group's CPUs stay taken while the
    driver lives, and the training waits for them when it is started again.
    Tests: tests/faults/test_train_faults.py, tests/jobs/train/test_train_on_ray.py::test_ctrl_c_keeps_finished_epochs,
    ::test_worker_that_dies_between_start_and_loop_is_replaced.
    Goes when: Ray Train has a public hook in the worker or the controller before a worker group's shutdown, and
    TrainController ends the worker group if the launch of the training loop fails.
    """
    import ray
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class EndWorkerGroups(WorkerGroupCallback, ControllerCallback):
        def __init__(self) -> None:
            self.worker_group: Any = None

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.worker_group = worker_group

        @contextmanager
        def on_worker_group_shutdown(self) -> Iterator[None]:
            self._call()
            yield

        def before_worker_group_abort(self, worker_group_context: Any) -> None:
            self._call()

        def _call(self) -> None:
            worker_group, self.worker_group = self.worker_group, None
            if worker_group is not None:  # else its start failed, or this is the second call
                refs = worker_group.execute_async(before_shutdown)
                ray.wait(refs, num_returns=len(refs), timeout=timeout_s + 1)  # a dead worker's is done too

        async def before_controller_shutdown(self) -> None:
            if self.worker_group is not None and self.worker_group.has_started():
                self.worker_group.shutdown()

    return EndWorkerGroups()


def leave_out_nodes(node_ids: set[str]) -> Any:
    """Return a Ray Train callback that keeps the workers of an elastic training off the nodes in `node_ids`.

    The set may grow while the training runs.
    Without it: a node whose disk is full fails an elastic training each time that it is started again with a worker
    there, and at last ends it.
    Test: tests/hosts/test_jobs_on_hosts.py::test_an_elastic_training_leaves_out_a_host_with_a_full_disk.
    Goes when: `ScalingConfig.label_selector` counts in the number of workers that an elastic training starts, and may
    change while it runs.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

    class LeaveOutNodes(ControllerCallback):
        def __init__(self) -> None:
            self.node_ids = node_ids

        def after_controller_start(self, train_run_context: Any) -> None:
            count_workers = ElasticScalingPolicy._count_possible_workers

            def count(self: Any, reserved_resources: dict[str, Any]) -> int:
                left = {node: resources for node, resources in reserved_resources.items() if node not in node_ids}
                return count_workers(self, left)

            ElasticScalingPolicy._count_possible_workers = count  # of this process, the controller

        def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
            return {"ray.io/node-id": f"!in({','.join(sorted(self.node_ids))})"} if self.node_ids else None

    return LeaveOutNodes()


def close_replica_grpc_port() -> None:
    """Keep this Serve replica from opening its port for calls between deployments. Call it in the replica's __init__.

    Without it: the replica listens on every interface and unpickles what arrives there, so anyone who reaches the
    machine runs code on it. zpoint's endpoint has one deployment, which is called over HTTP alone.
    Test: tests/serving/runtime/test_serve.py::test_serving_listens_on_loopback_only.
    Goes when: Serve binds this port to `http_options.host` or opens it on demand.
    """
    import ray.serve._private.replica as serve_replica

    if not hasattr(serve_replica, "add_port_to_grpc_server"):
        raise RuntimeError("cannot close the replica's gRPC port, which unpickles: this version of Ray opens it anew")
    serve_replica.add_port_to_grpc_server = lambda server, address: 0  # pyright: ignore[reportPrivateImportUsage]


def haproxy_binary() -> str:
    """Return the path of the haproxy binary that Serve would run; serving/runtime/haproxy.py wraps it.

    Without it: Serve's HAProxy listens on every interface and serves /-/routes to everybody, see that module.
    Test: tests/serving/runtime/test_serve.py::test_serving_answers_only_own_routes.
    Goes when: Serve has options for what the wrapper edits, or documents where its binary is.
    """
    from ray.serve._private.haproxy import get_haproxy_binary

    return get_haproxy_binary()


def shut_down_serve(timeout_s: float) -> None:
    """Stop Serve on the connected Ray; wait for its controller's end, at most `timeout_s` seconds.

    Without it: `serve.shutdown` waits inside the controller that it ends, and Ray prints a failed task at each Ctrl-C.
    Test: tests/serving/runtime/test_serve.py::test_stop_leaves_no_process_port_or_actor.
    Goes when: `serve.shutdown` ends without an error message.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE).graceful_shutdown.remote(wait=False)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            time.sleep(0.1)
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    except ValueError:  # the controller has ended
        pass
    serve.shutdown()
