"""The `zpoint` command, with a worker that is slow while the file `$SLOW` is there, and notes each step in `$STEPS`.

A line of the notes: the worker's rank, how many workers there are, the step done.
"""

from typing import Any

import jobs.train.ray_trainer
import jobs.train.stopping

jobs.train.ray_trainer.RESIZE_SECONDS = 1.0


def slow_worker(**told: Any) -> None:
    """Runs in each worker; it takes nothing of this file along but itself."""
    import os
    import time

    import aecore.metrics.pixel
    import jobs.train.ray_trainer
    import jobs.train.stopping

    aecore.metrics.pixel.MAX_PATCHES = 256
    after = jobs.train.stopping.StopConsensus.after_step

    def note(self: jobs.train.stopping.StopConsensus, step: int) -> int:
        with open(os.environ["STEPS"], "a") as notes:
            notes.write(f"{self.world.rank} {self.world.size} {step}\n")
        if os.path.exists(os.environ["SLOW"]):
            time.sleep(0.5)
        return after(self, step)

    jobs.train.stopping.StopConsensus.after_step = note
    jobs.train.ray_trainer.train_loop_per_worker(**told)


if __name__ == "__main__":
    from jobs.cli import main

    jobs.train.ray_trainer.train_loop_per_worker = slow_worker
    main()
