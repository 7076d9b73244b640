"""Choose how many trials share a GPU: as many as its memory holds and as train more steps per second than fewer.

Small networks in small batches leave most of a GPU idle, since launching a step's kernels takes longer than running
them.
"""

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aecore.config import Recipe
from aecore.data.shards import Manifest
from aecore.errors import one_line
from aecore.search_space import Choices
from jobs.train.placement import node_resources, wait_for_resources

log = logging.getLogger(__name__)
MEMORY_SHARE = 0.5  # of a GPU that the trials' networks may take: the other half is for their images
MIN_GAIN = 0.2  # of a further trial, relative to the speed of one of those before it
WARMUP_STEPS, MEASURED_S = 10, 2.0
MEASURED_BATCHES = 4  # of random images that a measured trial trains on

Measure = Callable[[int], tuple[float, float]]  # of n trials on one GPU: steps per second together, memory share of one


def trials_per_gpu(recipe: Recipe, manifest: Manifest) -> int:
    """Return how many trials share one GPU of the connected cluster: search.per_gpu, measured if that is auto."""
    if recipe.search.per_gpu != "auto":
        return recipe.search.per_gpu
    limit = max_per_gpu(node_resources(), recipe)
    if limit == 1:
        return 1
    rates: dict[int, float] = {}
    with StepProbes(heaviest_recipe(recipe), manifest, limit) as probes:

        def measure(count: int) -> tuple[float, float]:
            rates[count], memory_share = probes.measure(count)
            return rates[count], memory_share

        per_gpu = choose_per_gpu(limit, measure)
    if per_gpu > 1:
        speeds = f"{rates[per_gpu]:,.0f} steps/s together, {rates[1]:,.0f} alone"
        print(f"{per_gpu} trials share a GPU: {speeds}", file=sys.stderr, flush=True)
    return per_gpu


def max_per_gpu(nodes: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    """Return the most trials that can share a GPU: each needs a CPU, and no GPU stays idle while trials share one."""
    gpu_nodes = [node for node in nodes if node.get("GPU")]
    trials, parallel = recipe.search.trials, recipe.search.parallel
    at_once = trials if parallel == "auto" else min(trials, parallel)
    cpus_per_gpu = max((node.get("CPU", 0) // node["GPU"] for node in gpu_nodes), default=1)
    return max(1, int(min(at_once / max(1, sum(node["GPU"] for node in gpu_nodes)), cpus_per_gpu)))


def choose_per_gpu(limit: int, measure: Measure) -> int:
    """Return how many trials share a GPU, at most `limit`.

    The number doubles as long as the memory suffices and each further trial adds MIN_GAIN of the speed of one before.
    """
    rate, memory_share = measure(1)
    fitting = min(limit, int(MEMORY_SHARE / memory_share)) if memory_share else limit
    chosen = 1
    while rate and chosen < fitting:
        count = min(2 * chosen, fitting)
        rate_together, _ = measure(count)
        if rate_together < rate * (1 + MIN_GAIN * (count / chosen - 1)):
            break
        chosen, rate = count, rate_together
    return chosen


def heaviest_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe at the greatest value of each searched number, which takes the most memory."""
    dimensions = recipe.search.dimensions.items()
    point = {key: d.ends[-1] for key, d in dimensions if not isinstance(d, Choices) or d.ordered}
    try:
        return recipe.at(point)
    except ValueError:  # each value is valid, but not their combination
        return recipe.at({})


class StepProbes:
    """Trials that train side by side on one GPU of the cluster, to measure them."""

    def __init__(self, recipe: Recipe, manifest: Manifest, limit: int) -> None:
        self.arguments, self.limit = (recipe, manifest.size, manifest.channels), limit
        self.actors: list[Any] = []

    def __enter__(self) -> "StepProbes":
        from ray.util.placement_group import placement_group

        resources = {"GPU": 1.0, "CPU": 1.0}
        wait_for_resources(1, resources)
        self.group = placement_group([resources])
        return self

    def __exit__(self, *exc_info: object) -> None:
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)  # ends the actors

    def measure(self, count: int) -> tuple[float, float]:
        """Return the steps per second of `count` trials together, and the share of the GPU's memory that one takes.

        Both are 0 if the trials fail, as without the memory for so many.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor = ray.remote(StepProbe).options(
            num_cpus=0, num_gpus=math.floor(1e4 / self.limit) / 1e4,  # Ray counts in ten-thousandths
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group),
        )  # fmt: skip
        try:
            self.actors += [actor.remote(*self.arguments) for _ in range(count - len(self.actors))]
            memory_share = max(ray.get([actor.memory_share.remote() for actor in self.actors])) / count
            return sum(ray.get([actor.steps_per_second.remote() for actor in self.actors])), memory_share
        except RayError as error:
            log.warning("%d trials do not fit a GPU: %s", count, one_line(error))
            return 0.0, 0.0


class StepProbe:
    """The steps of a recipe on random images, as one trial takes them. Runs as an actor."""

    def __init__(self, recipe: Recipe, size: int, channels: int) -> None:
        import numpy as np

        from aecore.data.loaders import DeviceLoader
        from aecore.data.shuffle import BatchSampler
        from aecore.model.autoencoder import ImageShape, build_model, default_device
        from aecore.training.loop import TrainingRun, configure_cuda, train_step

        self.device, batch = default_device(), recipe.optim.batch
        shape = (MEASURED_BATCHES * batch, size, size, channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        loader = DeviceLoader(images, BatchSampler(recipe.optim.seed, batch), self.device)
        configure_cuda(self.device, recipe.optim.deterministic)
        run = TrainingRun(recipe, build_model(recipe, ImageShape(size, channels)).to(self.device), loader, loader)
        self.steps = (train_step(run, batch) for epoch in itertools.count() for batch in loader.batches(epoch))
        for _ in range(WARMUP_STEPS):
            next(self.steps)

    def memory_share(self) -> float:
        """Return the share of the GPU's memory that is in use, by all processes; 0 without a GPU."""
        import torch

        if self.device.type != "cuda":
            return 0.0
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free) / total

    def steps_per_second(self) -> float:
        """Return the optimizer steps per second, measured for MEASURED_S."""
        self._synchronize()
        start, count = time.monotonic(), 0
        while time.monotonic() - start < MEASURED_S:
            next(self.steps)
            count += 1
        self._synchronize()
        return count / (time.monotonic() - start)

    def _synchronize(self) -> None:
        """Wait until the device has taken the steps that are queued."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
