"""The training loop: resume is bit-identical, several workers equal one, and a step equals plain PyTorch."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pyarrow.fs import LocalFileSystem
from torch.nn.parallel import DistributedDataParallel

from aecore.config import check_recipe
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler, World, plan_epoch, step_rows
from aecore.model.autoencoder import ImageShape, build_model, to_float
from aecore.model.losses import loss_terms
from aecore.training import checkpoint, loop
from aecore.training.state import TrainingRun, TrainState

FS = LocalFileSystem()
CPU = torch.device("cpu")
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


def make_run(recipe, checkpoints=None, world=None, wrap=lambda model: model, n_train=21, n_valid=8):
    model = build_model(recipe, SHAPE)
    optimizer = loop.make_optimizer(model, recipe)
    state = checkpoint.load_checkpoint(FS, checkpoints, model, optimizer) if checkpoints else TrainState()
    sampler = BatchSampler(recipe.optim.seed, recipe.optim.batch, world or World())
    train, valid = (NodeLoader(make_images(count), sampler, CPU) for count in (n_train, n_valid))
    return TrainingRun(recipe, model, wrap(model), optimizer, CPU, world or World(), state, train, valid)


def weights(run):
    return torch.cat([tensor.detach().flatten() for tensor in run.model.state_dict().values()])


def epoch_ends(run):
    return [event for event in loop.fit(run) if isinstance(event, loop.EpochEnd)]


def last_metrics(run):
    return epoch_ends(run)[-1].metrics


def weights_by_step(run):
    """Train one epoch as on a GPU, without a check after each step, and return the weights after each step."""
    after_steps = []
    for batch in run.train.batches(0):
        loop.train_step(run, batch)
        run.state.step += 1
        after_steps.append(weights(run))
    return after_steps


def test_training_improves_and_reports_its_metrics():
    # No norm: group norm would remove the shade, the only thing that these images differ in.
    recipe = make_recipe("none", optim={"epochs": 20, "batch": 8, "lr": 5e-3}, loss={"kl_factor": 1e-6})
    epochs = epoch_ends(make_run(recipe, n_train=64, n_valid=64))
    assert [event.epoch for event in epochs] == list(range(1, 21))
    assert epochs[-1].metrics["valid_psnr"] > epochs[0].metrics["valid_psnr"] + 3
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    sample_metrics = {"hog_frechet_normal", "hog_frechet_gaussian"}
    assert {"valid_psnr", "train_kl", "images_per_second"} | sample_metrics <= set(epochs[-1].metrics)
    assert epochs[-1].images["normal"].shape == (10, 16, 16, 1)


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


def test_first_step_is_plain_adam_on_the_stated_loss():
    recipe = make_recipe()
    run = make_run(recipe)
    next(iter(loop.fit(run)))

    model = build_model(recipe, SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rows, _ = step_rows(plan_epoch(0, 0, 21), 0, 8, World())
    batch = to_float(torch.from_numpy(make_images()[rows]))
    logits, posterior = model(batch, loop.latent_noise(run, 0, 8))
    recon, kl, _ = loss_terms(recipe.loss, logits, posterior, batch)
    (recon + kl).mean().backward()
    optimizer.step()
    plain_weights = torch.cat([p.detach().flatten() for p in model.state_dict().values()])
    torch.testing.assert_close(weights(run), plain_weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optim", [{"lr": 1e30}, {"lr": 1e30, "clip": 1.0}])
def test_nonfinite_loss_stops_the_run_with_the_weights_before_it(optim):
    run = make_run(make_recipe(optim={"epochs": 2, "batch": 8} | optim))
    events = loop.fit(run)
    next(events)
    weights_before = weights(run)
    with pytest.raises(FloatingPointError, match=r"at step 2 \(epoch 1, images [\d, .]+ of the split\)") as error:
        next(events)
    assert torch.equal(weights_before, weights(run))
    rows, _ = step_rows(plan_epoch(0, 0, 21), 1, 8, World())
    assert f"images {', '.join(map(str, rows))} of the split" in str(error.value)
    norm = run.model.to_latent.bias.detach().norm()
    assert f"to_latent.bias {norm:.3g}" in str(error.value)
    assert "smaller optim.lr" in str(error.value)


def test_steps_after_a_nonfinite_loss_change_no_weights():
    """The host of a GPU run reads the step of the nonfinite loss only later."""
    run = make_run(make_recipe(optim={"batch": 8, "lr": 1e30}), n_train=64)
    after_steps = weights_by_step(run)
    assert all(torch.equal(after_steps[0], later) for later in after_steps)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        loop.read_running_means(run)


def test_nonfinite_gradients_of_another_worker_are_noticed_at_their_step():
    """DDP's mean brings them to this worker, whose own loss is finite."""
    run = make_run(make_recipe(), world=World(0, 2), n_train=64)
    run.model.to_latent.weight.register_hook(lambda grad: grad * float("nan") if run.state.step == 2 else grad)
    after_steps = weights_by_step(run)
    assert not torch.equal(after_steps[0], after_steps[1])
    assert all(torch.equal(after_steps[1], later) for later in after_steps[2:])
    with pytest.raises(FloatingPointError, match="at step 3 "):
        loop.read_running_means(run)


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
    epochs = epoch_ends(make_run(recipe, n_train=64))
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    assert (epochs[-1].metrics["train_kl"] == 0) == (kl_factor == 0)


def test_events_hold_metrics_kl_and_images():
    events = list(loop.fit(make_run(make_recipe(optim={"epochs": 12, "batch": 8}), n_train=16)))
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
    mp.get_context("forkserver").set_forkserver_preload(["torch.nn.parallel", "aecore.training.loop"])
    mp.start_processes(worker, args, nprocs=size, start_method="forkserver")


def start_worker(rank, size, port):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)


def stop_worker():
    dist.barrier()
    dist.destroy_process_group()


def train_worker(rank, size, port, path, norm):
    start_worker(rank, size, port)
    run = make_run(make_recipe(norm), world=World(rank, size), wrap=DistributedDataParallel)
    metrics = last_metrics(run)
    if rank == 0:
        torch.save({"weights": weights(run), "metrics": metrics}, path)
    del run
    stop_worker()


def train_on_workers(size, folder, norm, port):
    path = str(folder / f"{norm}-{size}.pt")
    run_workers(train_worker, (size, port, path, norm), size)
    return torch.load(path, weights_only=True)


def test_two_workers_equal_one(tmp_path, free_port):
    """Without batch norm only the order of float32 sums differs: after 6 steps the weights agree to 1e-5.

    Adam divides by the gradient's root mean square, so that a relative error of 1e-7 can grow 100-fold where a
    gradient is nearly 0.
    """
    one = make_run(make_recipe())
    metrics = last_metrics(one)
    two = train_on_workers(2, tmp_path, "group", free_port)
    torch.testing.assert_close(two["weights"], weights(one), rtol=1e-3, atol=1e-5)
    for name in ("train_loss", "train_kl", "valid_loss", "valid_psnr"):
        assert two["metrics"][name] == pytest.approx(metrics[name], rel=1e-5)


def test_synchronised_batch_norm_equals_that_of_one_worker(tmp_path, free_port):
    """Also if the last batch holds 5 images for 6 workers.

    This compares the curves, not the weights: a bias before batch norm has no gradient but rounding errors, which Adam
    scales to full steps. The float64 test below compares gradients.
    """
    metrics = last_metrics(make_run(make_recipe("sync_batch")))
    six = train_on_workers(6, tmp_path, "sync_batch", free_port)["metrics"]
    for name in ("train_loss", "valid_loss", "valid_psnr"):
        assert six[name] == pytest.approx(metrics[name], rel=1e-3)


def gradient_worker(rank, size, port, path):
    start_worker(rank, size, port)
    torch.save(first_step_gradients(World(rank, size), DistributedDataParallel), f"{path}-{rank}")
    stop_worker()


def first_step_gradients(world, wrap=lambda model: model):
    """Return the first step's gradients, in float64, with synchronised batch norm."""
    run = make_run(make_recipe("sync_batch"), world=world)
    run.wrapped_model = wrap(run.model.double())
    batch = next(iter(run.train.batches(0)))
    torch.set_default_dtype(torch.float64)
    clean = to_float(batch.images).double()
    recon, _, kl_penalty = loop.forward(run, clean, clean, loop.latent_noise(run, 0, batch.count)[batch.positions])
    torch.set_default_dtype(torch.float32)
    ((recon + kl_penalty).sum() * (world.size / batch.count)).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def test_gradients_of_three_workers_equal_those_of_one_in_float64(tmp_path, free_port):
    one = first_step_gradients(World())
    run_workers(gradient_worker, (3, free_port, str(tmp_path / "grad")), 3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"grad-{rank}"), one, rtol=1e-9, atol=1e-9)


def test_batch_norm_is_per_worker(tmp_path, free_port):
    """Each worker normalises with its own half of the batch, so that the curve differs, but little."""
    metrics = last_metrics(make_run(make_recipe("batch")))
    two = train_on_workers(2, tmp_path, "batch", free_port)["metrics"]
    assert two["train_loss"] != pytest.approx(metrics["train_loss"], rel=1e-6)
    assert two["train_loss"] == pytest.approx(metrics["train_loss"], rel=0.1)


def test_uneven_last_batch_of_three_workers_keeps_exact_means(tmp_path, free_port):
    """21 images in batches of 8 leave 5 for three workers."""
    metrics = last_metrics(make_run(make_recipe()))
    three = train_on_workers(3, tmp_path, "group", free_port)["metrics"]
    assert three["train_loss"] == pytest.approx(metrics["train_loss"], rel=1e-5)
