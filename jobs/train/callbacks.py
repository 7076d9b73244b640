"""Callbacks of Ray Train that every training on a cluster has. Imported only there: they need ray.train."""

import logging
from typing import Any

from ray.train import UserCallback

from cluster.progress import publish_warning
from cluster.ray_compat import end_worker_groups, leave_out_nodes
from jobs.train.errors import NodeError
from jobs.train.placement import worker_capacity
from jobs.train.stopping import SAVE_TIMEOUT_SECONDS, stop_this_process

log = logging.getLogger(__name__)


class FailOnUserError(UserCallback):
    """Ends the run at a user's mistake instead of retrying it: the next attempt would fail the same way.

    If only a node is unfit, as one with a full disk, an elastic training leaves it out and goes on with the others.
    """

    def __init__(self, run: str, resources: dict[str, float], min_workers: int | None) -> None:
        """`min_workers` of an elastic training, None for one with a fixed number of workers."""
        self.run, self.resources, self.min_workers = run, resources, min_workers
        self.left_out: set[str] = set()  # node ids

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first user's mistake in Ray Train's controller, which ends the run."""
        for error in worker_exceptions.values():
            left_out = isinstance(error, NodeError) and self._leave_out(error)
            if not left_out and isinstance(error, ValueError | FloatingPointError):
                raise error

    def _leave_out(self, error: NodeError) -> bool:
        """Leave out the node of an elastic training; return False if too few would remain, or if it is not elastic."""
        without = {*self.left_out, error.node_id}
        if not self.min_workers or worker_capacity(self.resources, without=without) < self.min_workers:
            return False
        self.left_out.add(error.node_id)
        publish_warning(self.run, f"{error}; the training goes on without this node")
        return True


def default_callbacks(run: str, resources: dict[str, float], min_workers: int | None) -> list[Any]:
    """Return the callbacks: no retry of a user's mistake, a checkpoint before a worker ends, no worker left behind."""
    fail = FailOnUserError(run, resources, min_workers)
    return [fail, leave_out_nodes(fail.left_out), end_worker_groups(stop_this_process, SAVE_TIMEOUT_SECONDS)]
