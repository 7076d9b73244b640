"""Training on a GPU compared with the CPU; skipped without a GPU. Needs aecore alone."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pyarrow.fs import LocalFileSystem

from aecore.config import TASKS, check_recipe
from aecore.data.loaders import DeviceLoader, NodeLoader
from aecore.data.shuffle import BatchSampler
from aecore.model.autoencoder import ImageShape, build_model
from aecore.model.corruptions import make_training_pair
from aecore.training import checkpoint, loop
from aecore.training.compiled import WARMUP_STEPS, CompiledUpdate
from aecore.training.evaluate import SampleEvaluator, evaluate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FS, SHAPE, STEPS_PER_EPOCH = LocalFileSystem(), ImageShape(32, 3), 8
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def make_images(count=61):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 200, (count, 1, 1, 3))
    return (colour + rng.integers(0, 50, (count, 32, 32, 3))).astype(np.uint8)


def make_recipe(norm="none", task="reconstruct", **optim):
    model = {"z_dim": 5, "channels": [8, 8, 16, 16], "norm": norm}
    return check_recipe({"model": model, "task": {"kind": task}, "optim": {"epochs": 2, "batch": 8} | optim})


def make_run(recipe, device=GPU, loader_class=DeviceLoader, checkpoints=None):
    loop.configure_cuda(device, recipe.optim.deterministic)
    model = build_model(recipe, SHAPE).to(device)
    train, valid = (
        loader_class(make_images(count), BatchSampler(recipe.optim.seed, recipe.optim.batch), device)
        for count in (61, 16)
    )
    run = loop.TrainingRun(recipe, model, train, valid)
    if checkpoints:
        run.state = checkpoint.load_checkpoint(FS, checkpoints, model, run.optimizer)
    return run


def weights(run):
    return torch.cat([tensor.detach().flatten().cpu() for tensor in run.model.state_dict().values()])


def gradients_and_loss(recipe, device, noise):
    """Return the gradients of one batch and its loss; `noise` comes from the CPU, since a GPU's generator differs."""
    run = make_run(recipe, device, NodeLoader)
    corrupted, target = make_training_pair(recipe, next(run.train.batches(0)), 0)
    loss, recon, kl = run.objective(corrupted, target, noise.to(device), torch.ones((), device=device))
    loss.mean().backward()
    gradients = torch.cat([p.grad.flatten().cpu() for p in run.model.parameters() if p.grad is not None])
    return gradients, float((recon + kl).mean().detach())


@pytest.mark.parametrize("norm", ["none", "group", "batch", "sync_batch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("bf16", 4e-2)])
def test_gradients_equal_those_of_the_cpu(norm, precision, tolerance):
    noise = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    cpu_gradients, cpu_loss = gradients_and_loss(make_recipe(norm, precision="float32"), CPU, noise)
    gpu_gradients, gpu_loss = gradients_and_loss(make_recipe(norm, precision=precision), GPU, noise)
    assert gpu_loss == pytest.approx(cpu_loss, rel=tolerance)
    assert (gpu_gradients - cpu_gradients).norm() / cpu_gradients.norm() < 2 * tolerance


@pytest.mark.parametrize("loader_class", [NodeLoader, DeviceLoader])
def test_loaders_give_the_same_batches_as_on_the_cpu(loader_class):
    cpu_loader = NodeLoader(make_images(), BatchSampler(3, 8), CPU)
    gpu_loader = loader_class(make_images(), BatchSampler(3, 8), GPU)
    for epoch in (0, 1, None):
        for cpu_batch, gpu_batch in zip(cpu_loader.batches(epoch), gpu_loader.batches(epoch), strict=True):
            assert gpu_batch.images.is_cuda
            assert torch.equal(cpu_batch.images, gpu_batch.images.cpu())
            assert torch.equal(cpu_batch.positions, gpu_batch.positions.cpu())
    assert torch.equal(cpu_loader.spaced_images(7), gpu_loader.spaced_images(7).cpu())


@pytest.mark.parametrize("loader_class", [NodeLoader, DeviceLoader])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_step_waits_for_the_device(loader_class, task):
    run = make_run(make_recipe("sync_batch", task, clip=10.0), loader_class=loader_class)
    batches = run.train.batches(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS_PER_EPOCH - 1):
            loop.train_step(run, next(batches))
            run.state.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loop.check_finite(run, run.nonfinite_step)
    assert run.epoch_sums[0] > 0


@pytest.mark.parametrize(("norm", "compile"), [("none", "off"), ("sync_batch", "off"), ("batch", "on")])
def test_deterministic_run_resumes_bit_identical(tmp_path, norm, compile):
    recipe = make_recipe(norm, deterministic=True, compile=compile)
    uninterrupted = make_run(recipe)
    list(loop.fit(uninterrupted))
    interrupted = make_run(recipe)
    for event in loop.fit(interrupted):
        if isinstance(event, loop.StepEnd) and interrupted.state.step == STEPS_PER_EPOCH + 3:
            loop.gather_sums(interrupted)
            snapshot = checkpoint.take_snapshot(interrupted.model, interrupted.optimizer, recipe, interrupted.state)
            checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
            break
    resumed = make_run(recipe, checkpoints=str(tmp_path))
    list(loop.fit(resumed))
    assert torch.equal(weights(uninterrupted), weights(resumed))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_steps_in_a_cuda_graph_equal_plain_steps(task):
    """61 images in batches of 8: seven full ones, of which the graph takes the last four, and one of five."""
    metrics, kinds = [], []
    for compile in ("off", "on"):
        recipe = make_recipe("batch", task, compile=compile, precision="float32", schedule="cosine", warmup=1)
        run = make_run(recipe)
        metrics.append([event.metrics for event in loop.fit(run) if isinstance(event, loop.EpochEnd)][-1])
        kinds.append(type(run.update))
    assert kinds[1] is CompiledUpdate
    for name in ("train_loss", "valid_loss", "train_kl"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-3)


def test_no_step_in_a_cuda_graph_waits_for_the_device():
    run = make_run(make_recipe("batch", "denoise", compile="on"))
    batches = run.train.batches(0)
    for step in range(STEPS_PER_EPOCH - 1):
        torch.cuda.set_sync_debug_mode("error" if step > WARMUP_STEPS else "default")
        loop.train_step(run, next(batches))
        run.state.step += 1
    torch.cuda.set_sync_debug_mode("default")
    loop.check_finite(run, run.nonfinite_step)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_nonfinite_loss_leaves_the_weights_of_the_step_before(compile):
    run = make_run(make_recipe(lr=1e30, compile=compile))
    weights_by_step = []
    for batch in run.train.batches(0):
        loop.train_step(run, batch)
        run.state.step += 1
        weights_by_step.append(weights(run))
    assert all(torch.equal(weights_by_step[0], later) for later in weights_by_step)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        loop.check_finite(run, run.nonfinite_step)


def test_ddp_with_nccl_changes_nothing(tmp_path):
    """With one worker, since a test has one GPU: the wrapped model, the start of NCCL and its collectives."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        plain, ddp = (make_run(make_recipe("sync_batch", deterministic=True)) for _ in range(2))
        ddp.distribute()
        for run in (plain, ddp):
            list(loop.fit(run))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(weights(plain), weights(ddp), rtol=1e-5, atol=1e-6)


def test_evaluation_equals_that_of_the_cpu():
    results = []
    for device in (CPU, GPU):
        run = make_run(make_recipe(precision="float32"), device, NodeLoader)
        loader = NodeLoader(make_images(40), BatchSampler(0, 8), device)
        results.append(evaluate(run.model, run.recipe, loader, run.world, "valid"))
        metrics, images = SampleEvaluator(run.model, run.recipe, run.train, run.valid).evaluate()
        assert images["normal"].shape == (10, 32, 32, 3)
        assert metrics["hog_frechet_gaussian"] > 0
    (cpu_metrics, cpu_kl_per_dim), (gpu_metrics, gpu_kl_per_dim) = results
    assert gpu_metrics == pytest.approx(cpu_metrics, rel=5e-3)
    np.testing.assert_allclose(cpu_kl_per_dim, gpu_kl_per_dim, rtol=2e-2, atol=1e-3)
