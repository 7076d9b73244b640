"""Every private name, monkeypatch and environment trick of Ray that zpoint still needs, one function for each.

Ray is pinned to one minor version in pyproject.toml. Each docstring says what a user suffers without the function, the
test that fails then, and what would let it go. tests/test_private_names.py allows private names in this module alone.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def use_loopback(enabled: bool) -> None:
    """Make the Ray that this process starts or joins next use 127.0.0.1 as this machine's address, if `enabled`.

    Without it: a local Ray listens on every interface of the machine, and runs whatever code reaches it; a Ray that
    listens on 127.0.0.1 alone cannot be joined by that address, since Ray replaces it by the machine's outward one.
    Test: tests/cluster/test_ray_connection.py::test_a_local_ray_listens_on_loopback_only.
    Goes when: `ray.init` takes the address to bind (https://github.com/ray-project/ray/issues/18730).
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


def own_state_api() -> AbstractContextManager[None]:
    """Return a context in which Ray Train's processes query the state API of the connected Ray.

    Without it: on a machine with a second Ray, the process that frees a killed training's CPUs asks that one for the
    training's controller, takes it for dead and ends the workers of a healthy training.
    Test: tests/jobs/train/test_train_on_ray.py::test_another_ray_on_the_machine_disturbs_nothing.
    Goes when: Ray Train's PlacementGroupCleaner passes the address of its own cluster to the state API.
    """
    import ray
    from ray.train.v2._internal import constants

    from cluster.ray_connection import ray_api_address

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


def call_before_worker_shutdown(function: Callable[[], None], timeout_s: float) -> Any:
    """Return a Ray Train callback that calls `function` in each worker before the worker group ends.

    Without it: Ctrl-C, a change of the number of workers and the loss of a node each cost the steps since the last
    checkpoint. `ray.train.UserCallback` has no such hook. It runs before TorchTrainer destroys the process group, which
    the last checkpoint needs. `function` must be importable in the worker.
    Tests: tests/faults/test_train_faults.py, tests/jobs/train/test_train_on_ray.py::test_ctrl_c_keeps_finished_epochs.
    Goes when: Ray Train has a public hook in the worker or the controller before a worker group's shutdown.
    """
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class BeforeWorkerShutdown(WorkerGroupCallback):
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
            if worker_group is not None:  # else its start failed
                refs = worker_group.execute_async(function)
                ray.wait(refs, num_returns=len(refs), timeout=timeout_s + 1)  # a dead worker's is done too

    return BeforeWorkerShutdown()


def shut_down_abandoned_workers() -> Any:
    """Return a Ray Train callback that shuts down a worker group that the controller has lost track of.

    Without it: if a worker dies as it receives its training loop, the controller fails without ending the group. The
    group's CPUs stay taken while the driver lives, and the training waits for them when it is started again.
    Test: tests/jobs/train/test_train_on_ray.py::test_worker_that_dies_between_start_and_loop_is_replaced.
    Goes when: TrainController ends the worker group if the launch of the training loop fails.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class ShutDownAbandonedWorkers(WorkerGroupCallback, ControllerCallback):
        def __init__(self) -> None:
            self.worker_group: Any = None

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.worker_group = worker_group

        async def before_controller_shutdown(self) -> None:
            if self.worker_group is not None and self.worker_group.has_started():
                self.worker_group.shutdown()

    return ShutDownAbandonedWorkers()
