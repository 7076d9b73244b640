"""The training loop: resume is bit-identical, several workers equal one, and each step equals a float64 reference."""

import math
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from pyarrow.fs import LocalFileSystem
from scipy import stats

from aecore.config import Loss, Optim, check_recipe
from aecore.data.loaders import Batch, NodeLoader, StreamLoader
from aecore.data.shuffle import BatchSampler, World, derive_seed, plan_epoch
from aecore.model.autoencoder import ImageShape, build_model, to_float
from aecore.model.corruptions import LATENT_NOISE, make_batch_noise
from aecore.training import checkpoint, loop
from aecore.training.evaluate import evaluate

FS = LocalFileSystem()
CPU = torch.device("cpu")
SUM = dist.ReduceOp.SUM
SHAPE = ImageShape(16, 1)
BASE = {
    "model": {"z_dim": 3, "channels": [4, 4, 4, 4], "norm": "group"},
    "optim": {"epochs": 2, "batch": 8},
}
TIMINGS = {"images_per_second", "epoch_seconds", "data_wait", "memory_mb"}


def make_images(count=21):
    rng = np.random.default_rng(0)
    shade = rng.integers(0, 200, (count, 1, 1, 1))
    return (shade + rng.integers(0, 50, (count, 16, 16, 1))).astype(np.uint8)


def make_recipe(norm="group", **sections):
    return check_recipe(BASE | {"model": BASE["model"] | {"norm": norm}} | sections)


def make_run(recipe, checkpoints=None, world=None, num_train=21, num_valid=8):
    model = build_model(recipe, SHAPE)
    sampler = BatchSampler(recipe.optim.seed, recipe.optim.batch, world or World())
    train, valid = (NodeLoader(make_images(count), sampler, CPU) for count in (num_train, num_valid))
    run = loop.TrainingRun(recipe, model, train, valid, world or World())
    if checkpoints:
        run.state = checkpoint.load_checkpoint(FS, checkpoints, model, run.optimizer)
    return run


def weights(run):
    return torch.cat([tensor.detach().flatten() for tensor in run.model.state_dict().values()])


def epoch_ends(run):
    return [event for event in loop.fit(run) if isinstance(event, loop.EpochEnd)]


def last_metrics(run):
    return epoch_ends(run)[-1].metrics


def weights_by_step(run, epochs=1):
    """Train as on a GPU, without a check after each step, and return the weights after each step."""
    after_steps = []
    for epoch in range(epochs):
        for batch in run.train.batches(epoch):
            loop.train_step(run, batch)
            run.state.step += 1
            after_steps.append(weights(run))
    return after_steps


def test_training_improves_and_reports_its_metrics():
    # No norm: group norm would remove the shade, the only thing that these images differ in.
    recipe = make_recipe("none", optim={"epochs": 20, "batch": 8, "lr": 5e-3}, loss={"kl_factor": 1e-6})
    epochs = epoch_ends(make_run(recipe, num_train=64, num_valid=64))
    assert [event.epoch for event in epochs] == list(range(1, 21))
    assert epochs[-1].metrics["valid_psnr"] > epochs[0].metrics["valid_psnr"] + 3
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    sample_metrics = {"hog_frechet_normal", "hog_frechet_gaussian"}
    assert {"valid_psnr", "train_kl", "images_per_second"} | sample_metrics <= set(epochs[-1].metrics)
    assert epochs[-1].images["normal"].shape == (10, 16, 16, 1)


@pytest.mark.parametrize(("max_bytes", "expected"), [(1 << 30, 256), (100 * 256 + 255, 100)])
def test_each_epoch_but_the_last_is_validated_on_evenly_spaced_images_of_at_most_1_gib(
    monkeypatch, max_bytes, expected
):
    assert loop.MAX_VALID_BYTES == 1 << 30
    monkeypatch.setattr(loop, "MAX_VALID_BYTES", max_bytes)
    run, sizes, limits = make_run(make_recipe(), num_valid=300), [], []
    spaced_images = run.valid.spaced_images

    def record(model, recipe, loader, world, prefix):
        sizes.append(len(loader))
        return evaluate(model, recipe, loader, world, prefix)

    monkeypatch.setattr(loop, "evaluate", record)
    monkeypatch.setattr(run.valid, "spaced_images", lambda limit: limits.append(limit) or spaced_images(limit))
    epoch_ends(run)
    assert (sizes, limits[0]) == ([expected, 300], expected)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("stop_step", [1, 2, 3, 4, 5])
def test_resume_ends_bit_identical(tmp_path, norm, stop_step):
    recipe = make_recipe(norm)
    uninterrupted = make_run(recipe)
    uninterrupted_metrics = last_metrics(uninterrupted)

    interrupted = make_run(recipe)
    for event in loop.fit(interrupted):
        if isinstance(event, loop.StepEnd) and interrupted.state.step == stop_step:
            loop.gather_sums(interrupted)
            snapshot = checkpoint.take_snapshot(interrupted.model, interrupted.optimizer, recipe, interrupted.state)
            checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
            break
    resumed = make_run(recipe, str(tmp_path))
    assert resumed.state.step == stop_step
    resumed_metrics = last_metrics(resumed)
    assert torch.equal(weights(uninterrupted), weights(resumed))
    for metrics in (uninterrupted_metrics, resumed_metrics):
        for name in TIMINGS:
            del metrics[name]
    assert resumed_metrics == uninterrupted_metrics


@pytest.mark.parametrize("streams_on", [False, True])
def test_an_epoch_that_a_stream_has_begun_is_repeated(tmp_path, streams_on):
    """Its images are not those with which the planned order begins, though its batches have the same sizes."""

    def make_stream_run(checkpoints=None):
        run = make_run(make_recipe(), checkpoints, num_train=24)
        images = make_images(24)
        run.train = StreamLoader(lambda epoch: iter([images]), lambda n: images[:n], 24, BatchSampler(0, 8), CPU)
        return run

    run = make_stream_run()
    for event in loop.fit(run):
        if isinstance(event, loop.StepEnd) and run.state.step == 4:
            loop.gather_sums(run)
            snapshot = checkpoint.take_snapshot(run.model, run.optimizer, run.recipe, run.state)
            checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
            break
    resumed = make_stream_run(str(tmp_path)) if streams_on else make_run(make_recipe(), str(tmp_path), num_train=24)
    samples = [event.samples for event in loop.fit(resumed) if isinstance(event, loop.StepEnd)]
    assert samples == [24 + 8, 24 + 16, 48]


def reference_logits(weights, images, noise):
    """Return the logits and the KL of each image by the definition of the network without norms."""
    hidden = images
    for layer in (0, 3, 6, 9):
        hidden = F.conv2d(hidden, weights[f"encoder.{layer}.weight"], weights[f"encoder.{layer}.bias"], 2, padding=1)
        hidden = hidden * torch.sigmoid(hidden)
    mean, logvar = (hidden.flatten(1) @ weights["to_latent.weight"].T + weights["to_latent.bias"]).chunk(2, 1)
    kl = ((mean**2 + logvar.exp() - logvar - 1) / 2).sum(1)
    z = mean + noise * logvar.exp().sqrt()
    hidden = (z @ weights["from_latent.weight"].T + weights["from_latent.bias"]).view(len(z), 4, 1, 1)
    for layer in (0, 3, 6, 9):
        hidden = hidden * torch.sigmoid(hidden) if layer else hidden
        weight, bias = weights[f"decoder.{layer}.weight"], weights[f"decoder.{layer}.bias"]
        hidden = F.conv_transpose2d(hidden, weight, bias, 2, padding=1)
    return hidden, kl


def reference_training(recipe, num_steps, steps_per_epoch):
    """Yield the weights in float64 after each step of Adam (Kingma and Ba 2015, algorithm 1)."""
    parameters = build_model(recipe, SHAPE).named_parameters()
    weights = {name: parameter.detach().double().requires_grad_() for name, parameter in parameters}
    first_moments, second_moments = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    optim, images = recipe.optim, torch.from_numpy(make_images(24)).permute(0, 3, 1, 2).double() / 255
    for step in range(num_steps):
        epoch, epoch_step = divmod(step, steps_per_epoch)
        batch = images[plan_epoch(optim.seed, epoch, 24)[8 * epoch_step : 8 * epoch_step + 8]]
        noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(derive_seed(optim.seed, step, 1))).double()
        logits, kl = reference_logits(weights, batch, noise)
        recon = -(batch * F.logsigmoid(logits) + (1 - batch) * F.logsigmoid(-logits)).sum((1, 2, 3))
        beta = recipe.loss.kl_factor * min(1, (step + 1) / (recipe.loss.kl_warmup * steps_per_epoch + 1))
        loss = (recon + beta * kl).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        warmup, total = optim.warmup * steps_per_epoch, optim.epochs * steps_per_epoch
        cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
        rate = optim.lr * ((step + 1) / (warmup + 1) if step < warmup else cosine)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            first_moments[name].lerp_(gradient, 0.1)
            second_moments[name].lerp_(gradient**2, 0.001)
            mean, square = (
                first_moments[name] / (1 - 0.9 ** (step + 1)), second_moments[name] / (1 - 0.999 ** (step + 1))
            )  # fmt: skip
            weight.data -= rate * mean / (square.sqrt() + 1e-8)
        yield torch.cat([weight.detach().flatten() for weight in weights.values()])


@pytest.mark.parametrize("kl_factor", [0.01, 30])
def test_each_step_equals_a_float64_reference(kl_factor):
    """Through the warm-up of the learning rate, its cosine, the warm-up of the KL and new noise in each step."""
    recipe = make_recipe(
        "none",
        optim={"epochs": 3, "batch": 8, "lr": 3e-3, "warmup": 1, "schedule": "cosine", "seed": 5},
        loss={"kl_factor": kl_factor, "kl_warmup": 2},
    )
    run = make_run(recipe, num_train=24)
    before = weights(run)
    for after, expected in zip(weights_by_step(run, 3), reference_training(recipe, 9, steps_per_epoch=3), strict=True):
        assert (after - expected).norm() < 2e-3 * (after - before).norm()
        before = after


def test_each_step_has_its_own_standard_normal_noise():
    batch = Batch.whole(torch.zeros(100, 1))
    noise = torch.stack([make_batch_noise(0, batch, step, LATENT_NOISE).normal(3) for step in range(20)])
    assert torch.equal(noise[3], make_batch_noise(0, batch, 3, LATENT_NOISE).normal(3))
    assert len({float(first) for first in noise[:, 0, 0]}) == 20
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(noise.flatten(1)).sub(torch.eye(20)).abs().max() < 0.25


@pytest.mark.parametrize("size", [2, 3])
def test_mean_of_the_workers_gradients_is_the_gradient_of_one_worker(size):
    """DDP averages the gradients; the last batch holds 5 images, which do not divide evenly."""

    def gradients(world):
        run = make_run(make_recipe(loss={"kl_factor": 3}), world=world)
        run.state.step = 2
        loop.train_step(run, list(run.train.batches(0))[2])
        return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])

    means = torch.stack([gradients(World(rank, size)) for rank in range(size)]).mean(0)
    torch.testing.assert_close(means, gradients(World()), rtol=1e-4, atol=1e-4)


def test_model_is_in_training_mode_in_steps_and_in_eval_mode_in_evaluations(monkeypatch):
    run, modes = make_run(make_recipe("batch"), num_train=16), []

    def record(function, name):
        def call(*args):
            modes.append((name, run.model.training))
            return function(*args)

        return call

    for name in ("train_step", "evaluate"):
        monkeypatch.setattr(loop, name, record(getattr(loop, name), name))
    epoch_ends(run)
    assert modes == 2 * [("train_step", True), ("train_step", True), ("evaluate", False)]


def test_a_run_is_freed_with_its_last_reference():
    """Not by the garbage collector: a GPU has no memory for the images of two trials of one process."""
    run = make_run(make_recipe(), num_train=8)
    weights_by_step(run)
    freed = weakref.ref(run)
    del run
    assert freed() is None


def test_epoch_sums_hold_the_images_of_the_open_epoch_alone():
    run = make_run(make_recipe())
    assert [int(run.epoch_sums[2]) for _ in loop.fit(run)] == 2 * [8, 16, 21, 0]


def test_sums_of_many_images_are_exact():
    """In float32 the count would stay at 2 ** 24 if images came one by one."""
    run = make_run(make_recipe(optim={"batch": 1}))
    run.epoch_sums += 2**24
    weights_by_step(run)
    assert run.epoch_sums[2].item() == 2**24 + 21


@pytest.mark.parametrize("rank", [0, 1])
def test_sums_of_an_open_epoch_move_to_rank_0(monkeypatch, rank):
    """So that the next sum over both workers, which here have equal sums, holds each image once."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op=SUM: tensor.mul_(1 + (op == SUM)))
    run = make_run(make_recipe(), world=World(rank, 2))
    run.epoch_sums += torch.tensor([7.0, 1, 2])
    loop.gather_sums(run)
    assert run.state.sums == {"recon": 14, "kl": 2, "count": 4}
    assert run.epoch_sums.tolist() == ([14, 2, 4] if rank == 0 else [0, 0, 0])


def test_a_nonfinite_loss_of_another_worker_ends_the_epoch_of_this_one(monkeypatch):
    """So that no worker waits for one that has stopped."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op=SUM: tensor if op == SUM else tensor.fill_(2))
    run = make_run(make_recipe(), world=World(0, 2))
    with pytest.raises(FloatingPointError, match="at step 3 "):
        loop.gather_sums(run)


@pytest.mark.parametrize("optim", [{"lr": 1e30}, {"lr": 1e30, "clip": 1.0}])
def test_nonfinite_loss_stops_the_run_with_the_weights_before_it(optim):
    run = make_run(make_recipe(optim={"epochs": 2, "batch": 8} | optim))
    events = loop.fit(run)
    next(events)
    weights_before = weights(run)
    with pytest.raises(FloatingPointError, match=r"at step 2 \(epoch 1, images [\d, .]+ of the split\)") as error:
        next(events)
    assert torch.equal(weights_before, weights(run))
    rows = plan_epoch(0, 0, 21)[8:16]
    assert f"images {', '.join(map(str, rows))} of the split" in str(error.value)
    norm = run.model.to_latent.bias.detach().norm()
    assert f"to_latent.bias {norm:.3g}" in str(error.value)
    assert "smaller optim.lr" in str(error.value)


@pytest.mark.parametrize(
    ("num_valid", "error"),
    [
        (8, r"step 1, the last of epoch 1, diverged \(.*valid_loss not finite\): try a smaller optim.lr"),
        (0, "z-points of training images are not finite, the model diverged: try a smaller optim.lr"),
    ],
)
def test_divergence_in_an_epochs_last_step_ends_the_run_at_the_end_of_the_epoch(num_valid, error):
    """Before, the epoch had a valid_loss of nan, or the fit of its samplers failed."""
    run = make_run(make_recipe(optim={"epochs": 2, "batch": 32, "lr": 1e30}), num_valid=num_valid)
    with pytest.raises(FloatingPointError, match=error):
        epoch_ends(run)
    assert run.state.step == 1


def test_steps_after_a_nonfinite_loss_change_no_weights():
    """The host of a GPU run reads the step of the nonfinite loss only later."""
    run = make_run(make_recipe(optim={"batch": 8, "lr": 1e30}), num_train=64)
    after_steps = weights_by_step(run)
    assert all(torch.equal(after_steps[0], later) for later in after_steps)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        loop.check_finite(run, run.nonfinite_step)


def test_nonfinite_gradients_of_another_worker_are_noticed_at_their_step():
    """DDP's mean brings them to this worker, whose own loss is finite."""
    run = make_run(make_recipe(), world=World(0, 2), num_train=64)
    run.model.to_latent.weight.register_hook(lambda grad: grad * float("nan") if run.state.step == 2 else grad)
    after_steps = weights_by_step(run)
    assert not torch.equal(after_steps[0], after_steps[1])
    assert all(torch.equal(after_steps[1], later) for later in after_steps[2:])
    with pytest.raises(FloatingPointError, match="at step 3 "):
        loop.check_finite(run, run.nonfinite_step)


def test_clipping_bounds_the_gradient_norm():
    """Adam's first step depends on the gradient's sign alone, so this compares its first moments, a tenth of it."""
    gradients = {}
    for clip in (0, 1.0):
        run = make_run(make_recipe(optim={"batch": 8, "clip": clip}))
        next(iter(loop.fit(run)))
        gradients[clip] = torch.cat([state["exp_avg"].flatten() for state in run.optimizer.state.values()]) / 0.1
    assert gradients[0].norm() > 10
    assert gradients[1.0].norm() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(gradients[1.0], gradients[0] / gradients[0].norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kl_factor", [0, 1e-6, 1, 10])
def test_kl_factors_of_all_sizes_train(kl_factor):
    recipe = make_recipe(loss={"kl_factor": kl_factor, "kl_warmup": 1, "free_bits": 0.01})
    epochs = epoch_ends(make_run(recipe, num_train=64))
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    assert (epochs[-1].metrics["train_kl"] == 0) == (kl_factor == 0)


def test_events_hold_metrics_kl_and_images():
    events = list(loop.fit(make_run(make_recipe(optim={"epochs": 12, "batch": 8}), num_train=16)))
    steps = [event for event in events if isinstance(event, loop.StepEnd)]
    epochs = [event for event in events if isinstance(event, loop.EpochEnd)]
    assert (steps[-1].samples, steps[-1].total_samples) == (192, 192)
    assert steps[-1].metrics.keys() == {"loss", "recon", "kl"}
    assert epochs[0].kl_per_dim.shape == (3,)
    assert epochs[0].kl_per_dim.sum() == pytest.approx(epochs[0].metrics["valid_kl"])
    assert 0 <= epochs[0].metrics["valid_active_units"] <= 3
    assert 0 <= epochs[0].metrics["data_wait"] <= 1
    assert epochs[0].metrics["memory_mb"] > 10
    assert [bool(event.images) for event in epochs] == [event.epoch in (3, 6, 9, 12) for event in epochs]


def run_workers(worker, args, size):
    """Run `worker(rank, *args)` in processes forked from a server that has imported torch once."""
    # torch._dynamo: the first optimizer or DistributedDataParallel imports it.
    preload = ["torch._dynamo", "torch.nn.parallel", "aecore.training.loop"]
    mp.get_context("forkserver").set_forkserver_preload(preload)
    mp.start_processes(worker, args, nprocs=size, start_method="forkserver")


def start_worker(rank, size, path):
    dist.init_process_group("gloo", f"file://{path}.group", rank=rank, world_size=size)
    torch.set_num_threads(1)


def stop_worker():
    dist.barrier()
    dist.destroy_process_group()


def train_worker(rank, size, path, norm, gradients):
    start_worker(rank, size, path)
    recipe = make_recipe(norm, scale={"gradients": gradients})
    run, metrics = make_run(recipe, world=World(rank, size)), {}
    run.distribute()
    for event in loop.fit(run):
        if isinstance(event, loop.EpochEnd):
            metrics = event.metrics
        elif run.state.step == 4:
            loop.gather_sums(run)  # as a checkpoint within an epoch does
    if rank == 0:
        torch.save({"weights": weights(run), "metrics": metrics}, path)
    del run
    stop_worker()


def train_on_workers(size, folder, norm, gradients="float32"):
    path = str(folder / f"{norm}-{size}.pt")
    run_workers(train_worker, (size, path, norm, gradients), size)
    return torch.load(path, weights_only=True)


def test_two_workers_equal_one(tmp_path):
    """Without batch norm only the order of float32 sums differs: after 6 steps the weights agree to 1e-5.

    Adam divides by the gradient's root mean square, so that a relative error of 1e-7 can grow 100-fold where a
    gradient is nearly 0.
    """
    one = make_run(make_recipe())
    metrics = last_metrics(one)
    two = train_on_workers(2, tmp_path, "group")
    torch.testing.assert_close(two["weights"], weights(one), rtol=1e-3, atol=1e-5)
    for name in ("train_loss", "train_kl", "valid_loss", "valid_psnr"):
        assert two["metrics"][name] == pytest.approx(metrics[name], rel=1e-5)
    assert "allreduce_wait" not in metrics
    assert 0 < two["metrics"]["allreduce_wait"] < 1


def test_gradients_in_bf16_change_the_curve_by_less_than_bf16_rounds(tmp_path):
    metrics = last_metrics(make_run(make_recipe()))
    two = train_on_workers(2, tmp_path, "group", "bf16")["metrics"]
    assert two["train_loss"] != pytest.approx(metrics["train_loss"], rel=1e-7)
    assert two["train_loss"] == pytest.approx(metrics["train_loss"], rel=2**-9)


def test_synchronised_batch_norm_equals_that_of_one_worker(tmp_path):
    """Also if the last batch holds 5 images for 6 workers.

    This compares the curves, not the weights: a bias before batch norm has no gradient but rounding errors, which Adam
    scales to full steps. The float64 test below compares gradients.
    """
    metrics = last_metrics(make_run(make_recipe("sync_batch")))
    six = train_on_workers(6, tmp_path, "sync_batch")["metrics"]
    for name in ("train_loss", "valid_loss", "valid_psnr"):
        assert six[name] == pytest.approx(metrics[name], rel=1e-3)


def gradient_worker(rank, size, path):
    start_worker(rank, size, path)
    torch.save(first_step_gradients(World(rank, size)), f"{path}-{rank}")
    stop_worker()


def first_step_gradients(world):
    """Return the first step's gradients, in float64, with synchronised batch norm."""
    run = make_run(make_recipe("sync_batch"), world=world)
    run.objective.double()
    if world.size > 1:
        run.distribute()
    batch = next(iter(run.train.batches(0)))
    torch.set_default_dtype(torch.float64)
    clean = to_float(batch.images).double()
    noise = make_batch_noise(0, batch, 0, LATENT_NOISE).normal(3)
    loss, _, _ = run.wrapped_objective(clean, clean, noise, torch.tensor(1.0))
    torch.set_default_dtype(torch.float32)
    (loss.sum() * (world.size / batch.count)).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def test_gradients_of_three_workers_equal_those_of_one_in_float64(tmp_path):
    one = first_step_gradients(World())
    run_workers(gradient_worker, (3, str(tmp_path / "grad")), 3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"grad-{rank}"), one, rtol=1e-9, atol=1e-9)


def test_batch_norm_is_per_worker(tmp_path):
    """Each worker normalises with its own half of the batch, so that the curve differs, but little."""
    metrics = last_metrics(make_run(make_recipe("batch")))
    two = train_on_workers(2, tmp_path, "batch")["metrics"]
    assert two["train_loss"] != pytest.approx(metrics["train_loss"], rel=1e-6)
    assert two["train_loss"] == pytest.approx(metrics["train_loss"], rel=0.1)


def test_metrics_of_batch_norm_are_those_of_the_saved_model(tmp_path):
    """Rank 0's running statistics are saved; each worker's own differ."""
    two, one = train_on_workers(2, tmp_path, "batch"), make_run(make_recipe("batch"))
    tensors = list(one.model.state_dict().values())
    for tensor, saved in zip(tensors, two["weights"].split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(saved.view_as(tensor))
    metrics = evaluate(one.model.eval(), one.recipe, one.valid, World(), "valid")[0]
    assert two["metrics"]["valid_loss"] == pytest.approx(metrics["valid_loss"], rel=1e-6)


def test_uneven_last_batch_of_three_workers_keeps_exact_means(tmp_path):
    """21 images in batches of 8 leave 5 for three workers."""
    metrics = last_metrics(make_run(make_recipe()))
    three = train_on_workers(3, tmp_path, "group")["metrics"]
    assert three["train_loss"] == pytest.approx(metrics["train_loss"], rel=1e-5)


def test_schedules_are_constant_by_default():
    assert {loop.learning_rate(Optim(lr=0.5), step, 7) for step in range(70)} == {0.5}
    assert {loop.kl_factor(Loss(kl_factor=4), step, 7) for step in range(70)} == {4.0}


def test_learning_rate_rises_linearly_then_falls_by_a_cosine():
    optim = Optim(lr=1.0, epochs=4, warmup=1.5, schedule="cosine")
    rates = [loop.learning_rate(optim, step, 10) for step in range(40)]
    assert rates[:15] == pytest.approx([(step + 1) / 16 for step in range(15)])
    assert rates[15] == 1.0
    assert rates[15 + 12] == pytest.approx(0.5, abs=0.04)
    assert rates == rates[:15] + sorted(rates[15:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_kl_factor_rises_linearly_during_its_warmup():
    loss = Loss(kl_factor=4, kl_warmup=0.5)
    assert [loop.kl_factor(loss, step, 4) for step in range(4)] == pytest.approx([4 / 3, 8 / 3, 4, 4])


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup takes fewer epochs than the 3 of the run"):
        check_recipe({"optim": {"epochs": 3, "warmup": 3}})


def test_mean_losses_are_those_of_one_or_of_many_images():
    sums = {"recon": 6.0, "kl": 4.0, "count": 1.0}
    assert loop.mean_losses(sums, 0.5) == {"loss": 8.0, "recon": 6.0, "kl": 4.0}
    assert loop.mean_losses(sums | {"count": 4.0}, 0.5) == {"loss": 2.0, "recon": 1.5, "kl": 1.0}
    assert loop.mean_losses(dict.fromkeys(sums, 0.0), 0.5) == {"loss": 0.0, "recon": 0.0, "kl": 0.0}
