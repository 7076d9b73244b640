"""Compiled steps: they equal the plain ones, resume bit-identical, and pay by a stated rule."""

import re
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from torch import nn

from aecore.config import check_recipe
from aecore.data.shuffle import World
from aecore.training import checkpoint, compiled, loop
from tests.aecore.training.test_loop import last_metrics, make_recipe, make_run, run_workers, start_worker, stop_worker
from tests.aecore.training.test_loop import weights as weights_of

COMPILED = {"optim": {"epochs": 2, "batch": 8, "compile": "on"}}


@pytest.fixture
def compilations(monkeypatch):
    """Compile by a backend that runs the graph as it is, in milliseconds; return the batch sizes compiled for."""
    sizes = []

    def backend(graph, inputs):
        sizes.append(next(len(tensor) for tensor in inputs if tensor.shape[1:] == (1, 16, 16)))
        return graph.forward

    def compile_quickly(module, *, dynamic, options):
        assert dynamic is False
        nn.Module.compile(module, dynamic=dynamic, backend=backend)

    torch.compiler.reset()
    monkeypatch.setattr(loop.Objective, "compile", compile_quickly)
    return sizes


def test_steps_of_full_batches_are_compiled_once_and_the_short_one_is_not(compilations):
    """21 images in batches of 8: two full ones and one of 5, twice, with an evaluation and other factors in each."""
    optim = {"epochs": 2, "batch": 8, "warmup": 1, "schedule": "cosine"}
    plain, run = (
        make_run(make_recipe("batch", optim=optim | {"compile": mode}, loss={"kl_warmup": 2})) for mode in ("off", "on")
    )
    compiled_metrics, metrics = last_metrics(run), last_metrics(plain)
    assert compilations == [8]
    torch.testing.assert_close(weights_of(run), weights_of(plain), rtol=1e-5, atol=1e-6)
    assert compiled_metrics["valid_loss"] == pytest.approx(metrics["valid_loss"], rel=1e-6)


def test_the_only_batch_of_an_epoch_is_compiled_though_it_is_short(compilations):
    last_metrics(make_run(make_recipe(optim={"epochs": 2, "batch": 64, "compile": "on"})))
    assert compilations == [21]


def test_compiled_run_resumes_bit_identical(tmp_path):
    """By Inductor; the resumed process begins with the short batch."""
    recipe = make_recipe("group", optim=COMPILED["optim"] | {"deterministic": True})
    uninterrupted, interrupted = make_run(recipe), make_run(recipe)
    metrics = last_metrics(uninterrupted)
    for event in loop.fit(interrupted):
        if isinstance(event, loop.StepEnd) and interrupted.state.step == 2:
            loop.gather_sums(interrupted)
            snapshot = checkpoint.take_snapshot(interrupted.model, interrupted.optimizer, recipe, interrupted.state)
            checkpoint.write_checkpoint(LocalFileSystem(), str(tmp_path), snapshot)
            break
    torch.compiler.reset()
    resumed = make_run(recipe, str(tmp_path))
    assert last_metrics(resumed)["train_loss"] == metrics["train_loss"]
    assert torch.equal(weights_of(uninterrupted), weights_of(resumed))
    plain = make_run(make_recipe("group"))
    assert last_metrics(plain)["valid_loss"] == pytest.approx(metrics["valid_loss"], rel=1e-4)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.usefixtures("compilations")
def test_a_library_that_a_kill_cut_off_is_deleted_from_torchs_cache(forward, tmp_path):
    """In the forward pass torch.compile wraps the error of the library, in the backward pass it does not."""
    library = tmp_path / "step.so"

    def load_library(*batch):
        library.touch()
        try:
            ExtensionFileLoader("step", str(library)).create_module(ModuleSpec("step", None, origin=str(library)))
        except ImportError as error:
            if not forward:
                raise
            torch_error = RuntimeError(f"backend='inductor' raised: {error}")
            torch_error.inner_exception = error
            raise torch_error from error

    run = make_run(make_recipe(optim=COMPILED["optim"]))
    run.update.full_update = load_library
    with pytest.raises(RuntimeError, match=r"held a damaged library, which is deleted now .*step\.so: file too short"):
        next(loop.fit(run))
    assert not library.exists()


@pytest.mark.usefixtures("compilations")
def test_nonfinite_loss_of_a_compiled_step_stops_the_run_with_the_weights_before_it():
    run = make_run(make_recipe(optim=COMPILED["optim"] | {"lr": 1e30}))
    events = loop.fit(run)
    next(events)
    weights_before = weights_of(run)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        next(events)
    assert torch.equal(weights_before, weights_of(run))


def compiled_worker(rank, size, path):
    start_worker(rank, size, path)
    loop.Objective.compile = lambda module, **options: nn.Module.compile(module, backend="aot_eager", dynamic=False)
    run = make_run(make_recipe(**COMPILED), world=World(rank, size))
    run.distribute()
    last_metrics(run)
    if rank == 0:
        torch.save(weights_of(run), path)
    del run
    stop_worker()


def test_two_compiled_workers_equal_a_plain_one(tmp_path):
    run_workers(compiled_worker, (2, str(tmp_path / "weights.pt")), 2)
    run = make_run(make_recipe())
    last_metrics(run)
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), weights_of(run), rtol=1e-3, atol=1e-5)


class Graph:
    """Stands for a CUDA graph: a capture records the calls, and `replay` makes them, with the same tensors."""

    def __init__(self):
        self.calls, self.capturing = [], False

    def replay(self):
        for call in self.calls:
            call()


def test_graph_replays_the_step_on_the_inputs_of_each_call(monkeypatch):
    """The captured step reads the tensors of the capture; without a corruption, input and target are one tensor."""

    @contextmanager
    def capture(graph, stream, capture_error_mode):
        graph.capturing = True
        yield
        graph.capturing = False

    @contextmanager
    def use_stream(stream):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {"CUDAGraph": Graph, "Stream": lambda device: stream, "graph": capture, "stream": use_stream,
                       "current_stream": lambda: stream}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    taken = []

    def update(run, corrupted, target, noise):
        assert corrupted is target

        def step():
            taken.append((float(corrupted[0]), float(noise[0])))

        (captured.graph.calls.append if captured.graph.capturing else lambda call: call())(step)

    captured = compiled.CapturedUpdate(update, torch.device("cuda"))
    for number in range(6):
        images = torch.full((2,), float(number))
        captured(None, images, images, torch.full((2,), number + 0.5))
    assert taken == [(number, number + 0.5) for number in range(6)]
    assert len(captured.graph.calls) == 1


def choose(device="cuda", step=0, resumable=True, **optim):
    optim = check_recipe({"optim": {"epochs": 100, "compile": "auto"} | optim}).optim
    return compiled.should_compile(SimpleNamespace(
        recipe=SimpleNamespace(optim=optim), steps_per_epoch=200, state=SimpleNamespace(step=step),
        device=torch.device(device), train=SimpleNamespace(resumable=resumable),
    ))  # fmt: skip


def test_auto_compiles_if_the_steps_that_are_left_pay_for_it(monkeypatch):
    monkeypatch.setattr(compiled, "can_compile", lambda device: True)
    assert choose()
    assert choose(step=10_000)
    assert not choose(step=10_001)
    assert not choose(epochs=49)
    assert not choose(device="cpu")
    assert not choose(resumable=False)
    assert not choose(deterministic=True)  # else a resumed run would take other steps than an undisturbed one
    assert choose(device="cpu", compile="on", epochs=1)
    assert not choose(compile="off")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC\nor set it"), "Failed .* via CC or set it"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_auto_trains_without_a_compiler_and_says_so(monkeypatch, caplog, error, reason):
    def no_compiler(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(torch, "ones", lambda *size, device: None)
    assert not choose()
    assert re.search(f"without torch.compile, which fails here: {reason}$", caplog.text, re.MULTILINE)
