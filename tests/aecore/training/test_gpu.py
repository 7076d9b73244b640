"""Training on a GPU beside the same on the CPU; skipped where there is none. Needs aecore alone."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pyarrow.fs import LocalFileSystem
from torch.nn.parallel import DistributedDataParallel

from aecore.config import TASKS, check_recipe
from aecore.data.loaders import DeviceLoader, NodeLoader
from aecore.data.shuffle import BatchSampler, World
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint, loop
from aecore.training.evaluate import SampleEvaluator, evaluate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FS, SHAPE, STEPS = LocalFileSystem(), ImageShape(32, 3), 8
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def images(count=61):
    draw = np.random.default_rng(0)
    shade = draw.integers(0, 200, (count, 1, 1, 3))
    return (shade + draw.integers(0, 50, (count, 32, 32, 3))).astype(np.uint8)


def recipe_of(norm="none", task="reconstruct", **optim):
    sizes = {"z_dim": 5, "channels": [8, 8, 16, 16], "norm": norm}
    return check_recipe({"model": sizes, "task": {"kind": task}, "optim": {"epochs": 2, "batch": 8} | optim})


def make_run(recipe, device=GPU, kind=DeviceLoader, folder=None):
    loop.set_up(device, recipe)
    model = build_model(recipe, SHAPE).to(device)
    optimizer = loop.make_optimizer(model, recipe)
    progress = checkpoint.load_checkpoint(FS, folder, model, optimizer) if folder else checkpoint.TrainState()
    run = loop.TrainingRun(recipe, model, model, optimizer, device, World(), progress)
    run.train = kind(images(), BatchSampler(recipe.optim.seed, recipe.optim.batch), device)
    return run


def weights(run):
    return torch.cat([value.detach().flatten().cpu() for value in run.model.state_dict().values()])


def gradients(recipe, device, noise):
    """Of one batch, and its loss; `noise` as the CPU draws it, since a GPU's numbers are others."""
    run = make_run(recipe, device, NodeLoader)
    seen, target = loop.make_training_pair(recipe, next(run.train.batches(0)), 0)
    recon, kl, held = loop.forward(run, seen, target, noise.to(device))
    (recon + held).mean().backward()
    found = torch.cat([p.grad.flatten().cpu() for p in run.model.parameters() if p.grad is not None])
    return found, float((recon + kl).mean().detach())


@pytest.mark.parametrize("norm", ["none", "group", "batch", "sync_batch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("bf16", 4e-2)])
def test_gradients_are_those_of_the_cpu(norm, precision, tolerance):
    noise = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    wanted, loss = gradients(recipe_of(norm, precision="float32"), CPU, noise)
    found, ours = gradients(recipe_of(norm, precision=precision), GPU, noise)
    assert ours == pytest.approx(loss, rel=tolerance)
    assert (found - wanted).norm() / wanted.norm() < 2 * tolerance


@pytest.mark.parametrize("kind", [NodeLoader, DeviceLoader])
def test_the_feeds_give_what_they_give_on_the_cpu(kind):
    feeds = [make(images(), BatchSampler(3, 8), device) for make, device in ((NodeLoader, CPU), (kind, GPU))]
    for epoch in (0, 1, None):
        for wanted, found in zip(*(feed.batches(epoch) for feed in feeds), strict=True):
            assert found.images.is_cuda
            assert torch.equal(wanted.images, found.images.cpu())
            assert torch.equal(wanted.positions, found.positions.cpu())
    assert torch.equal(feeds[0].spread(7), feeds[1].spread(7).cpu())


@pytest.mark.parametrize("kind", [NodeLoader, DeviceLoader])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_step_waits_for_the_device(kind, task):
    run = make_run(recipe_of("sync_batch", task, clip=10.0), kind=kind)
    batches = run.train.batches(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS - 1):
            loop.train_step(run, next(batches), STEPS)
            run.progress.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop.look(run)["recon"] > 0


@pytest.mark.parametrize("norm", ["none", "sync_batch"])
def test_a_deterministic_run_that_is_resumed_is_bit_identical(tmp_path, norm):
    recipe = recipe_of(norm, deterministic=True)
    whole = make_run(recipe)
    list(loop.fit(whole, whole.train, images(16)))
    first = make_run(recipe)
    for event in loop.fit(first, first.train, images(16)):
        if isinstance(event, loop.Step) and first.progress.step == STEPS + 3:
            loop.gather_sums(first)
            snapshot = checkpoint.take_snapshot(first.model, first.optimizer, recipe, first.progress)
            checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
            break
    second = make_run(recipe, folder=str(tmp_path))
    list(loop.fit(second, second.train, images(16)))
    assert torch.equal(weights(whole), weights(second))


def test_a_loss_that_is_not_finite_leaves_the_weights_before_it():
    run = make_run(recipe_of(lr=1e30))
    kept = []
    for batch in run.train.batches(0):
        loop.train_step(run, batch, STEPS)
        run.progress.step += 1
        kept.append(weights(run))
    assert all(torch.equal(kept[0], later) for later in kept)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        loop.look(run)


def test_ddp_with_nccl_changes_nothing(free_port):
    """One worker, since a test has one GPU: the wrapping, NCCL's start and its sums."""
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port}", rank=0, world_size=1)
    try:
        runs = [make_run(recipe_of("sync_batch", deterministic=True)) for _ in range(2)]
        runs[1].network = DistributedDataParallel(runs[1].model, device_ids=[0])
        for run in runs:
            list(loop.fit(run, run.train, images(16)))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-5, atol=1e-6)


def test_judging_says_what_it_says_on_the_cpu():
    found = []
    for device in (CPU, GPU):
        run = make_run(recipe_of(precision="float32"), device, NodeLoader)
        told, components = evaluate(run, images(40), "valid")
        found.append((told, components))
        metrics = {}
        pictures = SampleEvaluator(run, run.train, run.train)(metrics)
        assert pictures["normal"].shape == (10, 32, 32, 3)
        assert metrics["hog_frechet_gaussian"] > 0
    assert found[1][0] == pytest.approx(found[0][0], rel=5e-3)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=2e-2, atol=1e-3)
