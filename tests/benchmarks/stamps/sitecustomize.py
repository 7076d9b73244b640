"""Write time stamps for startup.py; Python imports this at the start of each process with this folder on PYTHONPATH.

If the variable STAMPS names a file, it gets one JSON line at the start of the process and at each begin and end of the
functions below: [seconds since 1970, CPU seconds of the process, process id, function, "begin" | "end" | "start"].
"""

import functools
import json
import os
import sys
import time
from importlib.machinery import PathFinder

FUNCTIONS = {
    "jobs.train.job": ["train", "connect"],
    "jobs.train.worker": ["open_loaders"],
    "aecore.model.autoencoder": ["build_model"],
    "ray.train.v2.api.data_parallel_trainer": ["DataParallelTrainer.fit"],
    "ray.train.v2._internal.execution.controller.controller": ["TrainController.__init__"],
    "ray.train.v2._internal.execution.worker_group.placement_group_handle": ["DefaultPlacementGroupHandle.wait"],
    "ray.train.v2._internal.execution.worker_group.worker": ["RayTrainWorker.__init__", "RayTrainWorker.run_train_fn"],
    "torch.distributed.distributed_c10d": ["init_process_group"],
    "torch.optim.adam": ["Adam.step"],
}


def stamp(function: str, edge: str) -> None:
    line = json.dumps([time.time(), time.process_time(), os.getpid(), function, edge])
    with open(os.environ["STAMPS"], "a") as file:
        file.write(line + "\n")


def wrap(module: object, path: str) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    function = getattr(module, name)

    @functools.wraps(function)
    def stamped(*args, **kwargs):
        stamp(path, "begin")
        try:
            return function(*args, **kwargs)
        finally:
            stamp(path, "end")

    setattr(module, name, stamped)


class Finder:
    """Finds modules as Python does, and wraps their FUNCTIONS once they are loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in FUNCTIONS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def load_and_wrap(module):
            load(module)
            for function in FUNCTIONS[name]:
                wrap(module, function)

        spec.loader.exec_module = load_and_wrap
        return spec


if "STAMPS" in os.environ:
    sys.meta_path.insert(0, Finder)
    stamp(" ".join(sys.orig_argv[1:4]), "start")
