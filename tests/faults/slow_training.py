"""The `zpoint` command with workers that are slow while the file `$SLOW` exists, and append each step to `$STEPS`.

A line of `$STEPS` has the worker's rank, the number of workers and the step.
"""

from typing import Any

import jobs.train.job
from jobs.cli import main

connect = jobs.train.job.connect


def slow_train_loop(**arguments: Any) -> None:
    """Train in a worker of Ray Train. It is pickled by value, without the rest of this module."""
    import os
    import time

    import aecore.metrics.pixel
    import jobs.train.ray_trainer
    from jobs.train.stopping import Action, StopConsensus

    aecore.metrics.pixel.NUM_PATCHES = 256
    after_step = StopConsensus.after_step

    def record_step(self: StopConsensus, step: int) -> Action:
        with open(os.environ["STEPS"], "a") as file:
            file.write(f"{self.world.rank} {self.world.size} {step}\n")
        if os.path.exists(os.environ["SLOW"]):
            time.sleep(0.5)
        return after_step(self, step)

    StopConsensus.after_step = record_step
    jobs.train.ray_trainer.train_loop_per_worker(**arguments)


def connect_and_patch() -> None:
    """Join the cluster, then patch the trainer, which imports Ray: Ray reads variables that `connect` sets."""
    connect()
    import jobs.train.ray_trainer

    jobs.train.ray_trainer.RESIZE_S = 1.0
    jobs.train.ray_trainer.train_loop_per_worker = slow_train_loop


if __name__ == "__main__":
    jobs.train.job.connect = connect_and_patch
    main()
