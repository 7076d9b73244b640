"""The training step compiled by torch.compile, and on a GPU captured in a CUDA graph: when it pays, and how."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aecore.errors import one_line

if TYPE_CHECKING:
    from aecore.training.loop import TrainingRun, Update

# Steps that pay for compiling on a GPU. On one H100 it takes 13 s; a step of 512 images is then 1.3 ms shorter, one of
# 64 images in a CUDA graph 3.7 ms (docs/log.md, 2026-11-26). On a CPU no number of steps pays.
MIN_STEPS = 10_000
WARMUP_STEPS = 3  # before the capture: compiling, cuDNN's choice of algorithms, workspaces
log = logging.getLogger(__name__)


def should_compile(run: "TrainingRun") -> bool:
    """Return if `optim.compile` of the run's recipe and the steps that are left call for a compiled step.

    `auto` compiles neither on a CPU nor a deterministic run, whose steps must not depend on where it was resumed.
    """
    optim = run.recipe.optim
    if optim.compile != "auto":
        return optim.compile == "on"
    steps_left = optim.epochs * run.steps_per_epoch - run.state.step
    pays = run.device.type == "cuda" and steps_left >= MIN_STEPS and run.train.resumable and not optim.deterministic
    return pays and can_compile(run.device)


def can_compile(device: torch.device) -> bool:
    """Return if torch.compile works here; log why not. It needs a C compiler, and on a GPU Python's headers too."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # of Triton, of the C compiler, of torch
        log.warning("training without torch.compile, which fails here: %s", one_line(error))
        return False
    return True


def delete_damaged_library(error: Exception) -> None:
    """Delete the library in torch's cache of compiled code that `error` of torch.compile names, if it names one.

    torch does not write them atomically: a kill leaves one cut off, which torch would load again. Raises RuntimeError
    if it has deleted one; the step is not repeated, since its forward pass may have changed running statistics.
    """
    cause = getattr(error, "inner_exception", error)  # the backward pass raises it as it is
    if isinstance(cause, ImportError) and cause.path and "file too short" in str(cause):
        Path(cause.path).unlink(missing_ok=True)
        raise RuntimeError(
            f"torch.compile's cache held a damaged library, which is deleted now ({cause}): start the training again"
        ) from error


class CompiledUpdate:
    """Takes the steps of full batches with the network and its loss compiled, all other steps as they are.

    A single worker on a GPU replays a CUDA graph of the whole step: forward, backward and Adam.
    """

    def __init__(self, run: "TrainingRun", update: "Update") -> None:
        self.update = update
        full = run.recipe.optim.batch if run.steps_per_epoch > 1 else len(run.train)  # an epoch's only batch is full
        self.rows = len(run.world.positions(full))
        options = {"deterministic": True} if run.recipe.optim.deterministic else {}
        torch.compiler.reset()  # else torch stops to compile after some trials in one process
        run.objective.compile(dynamic=False, options=options)
        captures = run.device.type == "cuda" and run.world.size == 1
        self.full_update = CapturedUpdate(update, run.device) if captures else update

    def __call__(self, run: "TrainingRun", corrupted: Tensor, target: Tensor, noise: Tensor) -> None:
        if len(corrupted) == self.rows:
            try:
                self.full_update(run, corrupted, target, noise)
            except Exception as error:
                delete_damaged_library(error)
                raise
        else:
            with torch.compiler.set_stance("force_eager"):
                self.update(run, corrupted, target, noise)


class CapturedUpdate:
    """A CUDA graph of the steps on batches of one shape. The first steps are taken without it, to warm up."""

    def __init__(self, update: "Update", device: torch.device) -> None:
        self.update, self.steps = update, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        self.inputs: list[Tensor] = []

    def __call__(self, run: "TrainingRun", *inputs: Tensor) -> None:
        if not self.inputs:
            copies = {id(tensor): tensor.clone() for tensor in inputs}
            self.inputs = [copies[id(tensor)] for tensor in inputs]  # without a corruption the input is the target
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor)
        if self.steps < WARMUP_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.update(run, *self.inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.steps == WARMUP_STEPS:
                # thread_local: the loader's threads copy images meanwhile, which a global capture does not allow.
                with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                    self.update(run, *self.inputs)
            self.graph.replay()
        self.steps += 1
