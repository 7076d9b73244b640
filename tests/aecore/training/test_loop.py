"""The loop against itself: resumed, shared out among workers, and against a plain PyTorch step."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pyarrow.fs import LocalFileSystem

from aecore.config import check_recipe
from aecore.data.shuffle import World, plan_epoch, step_rows
from aecore.model.autoencoder import ImageShape, build_model, to_float
from aecore.model.losses import loss_parts
from aecore.training import checkpoint, loop

FS = LocalFileSystem()
SHAPE = ImageShape(16, 1)
BASE = {
    "model": {"z_dim": 3, "channels": [4, 4, 4, 4], "norm": "group"},
    "optim": {"epochs": 2, "batch": 8},
}


def images(count=21):
    generator = np.random.default_rng(0)
    shade = generator.integers(0, 200, (count, 1, 1, 1))
    return (shade + generator.integers(0, 50, (count, 16, 16, 1))).astype(np.uint8)


def make_run(recipe, folder=None, world=None, wrap=lambda m: m):
    model = build_model(recipe, SHAPE)
    optimizer = loop.make_optimizer(model, recipe)
    progress = checkpoint.TrainState()
    if folder:
        progress = checkpoint.load_checkpoint(FS, folder, model, optimizer)
    return loop.TrainingRun(recipe, model, wrap(model), optimizer, torch.device("cpu"), world or World(), progress)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.state_dict().values()])


def test_it_learns_and_tells_its_metrics():
    # No norm: group norm would take the shade away, which is all that these images differ in.
    model, optim = BASE["model"] | {"norm": "none"}, {"epochs": 20, "batch": 8, "lr": 5e-3}
    recipe = check_recipe({"model": model, "optim": optim, "loss": {"kl_factor": 1e-6}})
    epochs = [e for e in loop.fit(make_run(recipe), images(64), images(64)) if isinstance(e, loop.Epoch)]
    assert [e.epoch for e in epochs] == list(range(1, 21))
    assert epochs[-1].metrics["valid_psnr"] > epochs[0].metrics["valid_psnr"] + 3
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    judged = {"hog_frechet_normal", "hog_frechet_gaussian"}
    assert {"valid_psnr", "train_kl", "images_per_second"} | judged <= set(epochs[-1].metrics)
    assert epochs[-1].pictures["normal"].shape == (10, 16, 16, 1)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_resumed_run_is_bit_identical(tmp_path, norm, stop_at):
    recipe = check_recipe(BASE | {"model": BASE["model"] | {"norm": norm}})
    whole = make_run(recipe)
    told = [e.metrics for e in loop.fit(whole, images(), images(8)) if isinstance(e, loop.Epoch)]

    first = make_run(recipe)
    for event in loop.fit(first, images(), images(8)):
        if isinstance(event, loop.Step) and first.progress.step == stop_at:
            loop.gather_sums(first)
            snapshot = checkpoint.take_snapshot(first.model, first.optimizer, recipe, first.progress)
            checkpoint.write_checkpoint(FS, str(tmp_path), snapshot)
            break
    second = make_run(recipe, str(tmp_path))
    assert second.progress.step == stop_at
    again = [e.metrics for e in loop.fit(second, images(), images(8)) if isinstance(e, loop.Epoch)]
    assert torch.equal(weights(whole), weights(second))
    measured = {"images_per_second", "epoch_seconds", "data_wait", "memory_mb"}
    assert {k: v for k, v in again[-1].items() if k not in measured} == {
        k: v for k, v in told[-1].items() if k not in measured
    }


def test_first_step_is_plain_adam_on_the_stated_loss():
    recipe, data = check_recipe(BASE), images()
    run = make_run(recipe)
    next(iter(loop.fit(run, data, images(8))))

    model = build_model(recipe, SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rows, _ = step_rows(plan_epoch(0, 0, len(data)), 0, 8, World())
    batch = to_float(torch.from_numpy(data[rows]))
    logits, latent = model(batch, loop.batch_noise(run, 0, 8))
    recon, kl, _ = loss_parts(recipe.loss, logits, latent, batch)
    (recon + kl).mean().backward()
    optimizer.step()
    plain = torch.cat([p.detach().flatten() for p in model.state_dict().values()])
    torch.testing.assert_close(weights(run), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optim", [{"lr": 1e30}, {"lr": 1e30, "clip": 1.0}])
def test_a_loss_that_is_not_finite_stops_the_run(optim):
    run = make_run(check_recipe(BASE | {"optim": {"epochs": 2, "batch": 8} | optim}))
    steps = loop.fit(run, images(), images(8))
    next(steps)
    before = weights(run)
    with pytest.raises(FloatingPointError, match=r"at step 2 \(epoch 1, images [\d, .]+ of the split\)") as caught:
        next(steps)
    assert torch.equal(before, weights(run))  # and leaves the weights as they were
    rows, _ = step_rows(plan_epoch(0, 0, 21), 1, 8, World())
    assert f"images {', '.join(map(str, rows))} of the split" in str(caught.value)
    norm = run.model.to_latent.bias.detach().norm()
    assert f"to_latent.bias {norm:.3g}" in str(caught.value)
    assert "smaller optim.lr" in str(caught.value)


def test_the_host_need_not_look_at_each_step():
    """As on a GPU: the bad step is found later, and by then nothing has been spoilt."""
    run, data = make_run(check_recipe(BASE | {"optim": {"batch": 8, "lr": 1e30}})), images(64)
    run.train = loop.as_loader(run, data)
    kept = []
    for batch in run.train.batches(0):
        loop.train_step(run, batch, 8)
        run.progress.step += 1
        kept.append(weights(run))
    assert all(torch.equal(kept[0], later) for later in kept)
    with pytest.raises(FloatingPointError, match="at step 2 "):
        loop.look(run)


def test_another_workers_bad_gradients_are_noticed_at_their_step():
    """DDP's mean brings them here, while this worker's own loss is finite."""
    run, data = make_run(check_recipe(BASE), world=World(0, 2)), images(64)
    run.train = loop.as_loader(run, data)
    run.model.to_latent.weight.register_hook(lambda grad: grad * float("nan") if run.progress.step == 2 else grad)
    kept = []
    for batch in run.train.batches(0):
        loop.train_step(run, batch, 8)
        run.progress.step += 1
        kept.append(weights(run))
    assert not torch.equal(kept[0], kept[1])
    assert all(torch.equal(kept[1], later) for later in kept[2:])
    with pytest.raises(FloatingPointError, match="at step 3 "):
        loop.look(run)


def test_clipping_bounds_the_step_of_the_gradient():
    """With beta-free Adam the first step only knows the sign; so compare the moments, which are the gradient."""
    moments = {}
    for clip in (0, 1.0):
        run = make_run(check_recipe(BASE | {"optim": {"batch": 8, "clip": clip}}))
        next(iter(loop.fit(run, images(), images(8))))
        moments[clip] = torch.cat([s["exp_avg"].flatten() for s in run.optimizer.state.values()]) / 0.1
    assert moments[0].norm() > 10
    assert moments[1.0].norm() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(moments[1.0], moments[0] / moments[0].norm(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kl_factor", [0, 1e-6, 1, 10])
def test_kl_factors_of_all_sizes_train(kl_factor):
    recipe = check_recipe(BASE | {"loss": {"kl_factor": kl_factor, "kl_warmup": 1, "free_bits": 0.01}})
    told = [e.metrics for e in loop.fit(make_run(recipe), images(64), images(8)) if isinstance(e, loop.Epoch)]
    assert told[-1]["train_loss"] < told[0]["train_loss"]
    assert (told[-1]["train_kl"] == 0) == (kl_factor == 0)


def test_what_an_epoch_tells():
    recipe = check_recipe(BASE | {"optim": {"epochs": 12, "batch": 8}})
    events = list(loop.fit(make_run(recipe), images(16), images(8)))
    steps = [e for e in events if isinstance(e, loop.Step)]
    epochs = [e for e in events if isinstance(e, loop.Epoch)]
    assert steps[-1].told.keys() == {"loss", "recon", "kl"}
    assert epochs[0].components.shape == (3,)
    assert epochs[0].components.sum() == pytest.approx(epochs[0].metrics["valid_kl"])
    assert 0 <= epochs[0].metrics["valid_active_units"] <= 3
    assert 0 <= epochs[0].metrics["data_wait"] <= 1
    assert epochs[0].metrics["memory_mb"] > 10
    assert [bool(e.pictures) for e in epochs] == [e.epoch in (3, 6, 9, 12) for e in epochs]


def _worker(rank, size, port, folder, norm):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    recipe = check_recipe(BASE | {"model": BASE["model"] | {"norm": norm}})
    run = make_run(recipe, world=World(rank, size), wrap=torch.nn.parallel.DistributedDataParallel)
    metrics = [e.metrics for e in loop.fit(run, images(), images(8)) if isinstance(e, loop.Epoch)][-1]
    if rank == 0:
        torch.save({"weights": weights(run), "metrics": metrics}, folder)
    del run
    dist.barrier()
    dist.destroy_process_group()


def _on_workers(size, folder, norm, port):
    path = str(folder / f"{norm}-{size}.pt")
    mp.spawn(_worker, (size, port, path, norm), nprocs=size)
    return torch.load(path, weights_only=True)


def test_two_workers_equal_one(tmp_path, free_port):
    """Without batch norm only the order of float32 sums differs: 6 steps keep within 1e-5 of the one worker's
    weights (Adam divides by the gradient's root mean square, so an error of 1e-7 relative can grow 100-fold where
    a gradient is nearly 0)."""
    recipe = check_recipe(BASE)
    one = make_run(recipe)
    told = [e.metrics for e in loop.fit(one, images(), images(8)) if isinstance(e, loop.Epoch)][-1]
    two = _on_workers(2, tmp_path, "group", free_port)
    torch.testing.assert_close(two["weights"], weights(one), rtol=1e-3, atol=1e-5)
    for key in ("train_loss", "train_kl", "valid_loss", "valid_psnr"):
        assert two["metrics"][key] == pytest.approx(told[key], rel=1e-5)


def test_synchronised_batch_norm_is_that_of_one_worker(tmp_path, free_port):
    """Even where the last batch holds 5 images and there are 6 workers.

    The curves are compared, not the weights: a bias before batch norm has no gradient but rounding, of which Adam
    makes whole steps. The gradients are compared below, in float64.
    """
    recipe = check_recipe(BASE | {"model": BASE["model"] | {"norm": "sync_batch"}})
    told = [e.metrics for e in loop.fit(make_run(recipe), images(), images(8)) if isinstance(e, loop.Epoch)][-1]
    metrics = _on_workers(6, tmp_path, "sync_batch", free_port)["metrics"]
    for key in ("train_loss", "valid_loss", "valid_psnr"):
        assert metrics[key] == pytest.approx(told[key], rel=1e-3)


def _gradient_worker(rank, size, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    torch.save(_gradients(World(rank, size), torch.nn.parallel.DistributedDataParallel), f"{path}-{rank}")
    dist.barrier()
    dist.destroy_process_group()


def _gradients(world, wrap=lambda m: m):
    """Of the first step, in float64, with synchronised batch norm."""
    recipe = check_recipe(BASE | {"model": BASE["model"] | {"norm": "sync_batch"}})
    run = make_run(recipe, world=world)
    run.network = wrap(run.model.double())
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
    batch = next(iter(loop.as_loader(run, images()).batches(0)))
    torch.set_default_dtype(torch.float64)
    seen = to_float(batch.images).double()
    recon, _, held = loop.forward(run, seen, seen, loop.batch_noise(run, 0, batch.count)[batch.positions])
    torch.set_default_dtype(torch.float32)
    ((recon + held).sum() * (world.size / batch.count)).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def test_gradients_of_several_workers_are_those_of_one_in_float64(tmp_path, free_port):
    alone = _gradients(World())
    mp.spawn(_gradient_worker, (3, free_port, str(tmp_path / "grad")), nprocs=3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"grad-{rank}"), alone, rtol=1e-9, atol=1e-9)


def test_batch_norm_is_per_worker(tmp_path, free_port):
    """Each worker normalises with its own half of the batch, so the curve differs, by little."""
    recipe = check_recipe(BASE | {"model": BASE["model"] | {"norm": "batch"}})
    one = make_run(recipe)
    told = [e.metrics for e in loop.fit(one, images(), images(8)) if isinstance(e, loop.Epoch)][-1]
    two = _on_workers(2, tmp_path, "batch", free_port)["metrics"]
    assert two["train_loss"] != pytest.approx(told["train_loss"], rel=1e-6)
    assert two["train_loss"] == pytest.approx(told["train_loss"], rel=0.1)


def test_more_workers_than_images_in_the_last_batch(tmp_path, free_port):
    """21 images in batches of 8 leave 5; three workers' parts are uneven, and the means are still exact."""
    recipe = check_recipe(BASE)
    one = make_run(recipe)
    told = [e.metrics for e in loop.fit(one, images(), images(8)) if isinstance(e, loop.Epoch)][-1]
    three = _on_workers(3, tmp_path, "group", free_port)["metrics"]
    assert three["train_loss"] == pytest.approx(told["train_loss"], rel=1e-5)
