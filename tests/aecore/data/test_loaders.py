"""Loaders follow the plan and agree with each other; a stream keeps its own rules; flips depend on counters alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aecore.config import check_recipe
from aecore.data.loaders import Batch, DeviceLoader, NodeLoader, StreamLoader, iter_shards, regroup, shuffle_rows
from aecore.data.shuffle import BatchSampler, World, evenly_spaced, plan_epoch, steps_per_epoch
from aecore.model.autoencoder import ImageShape, build_model
from aecore.model.corruptions import make_training_pair
from aecore.training import loop
from aecore.training.checkpoint import TrainState
from tests.synthetic_dataset import image_ids, make_dataset, noise_images

CPU = torch.device("cpu")
WORLDS = [1, 2, 3, 8]


@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 3), st.data())
@pytest.mark.parametrize("size", WORLDS)
def test_a_sampler_is_complete_disjoint_and_resumable(size, count, batch, epoch, data):
    first = data.draw(st.integers(0, steps_per_epoch(count, batch)))
    plan = plan_epoch(7, epoch, count)
    workers = [list(BatchSampler(7, batch, World(rank, size)).steps(count, epoch, first)) for rank in range(size)]
    global_batches = [np.concatenate([rows for rows, _, _ in slices]) for slices in zip(*workers, strict=True)]
    assert np.array_equal(np.concatenate([[], *global_batches]), plan[first * batch :])
    assert [len(rows) for rows in global_batches] == [count for _, _, count in workers[0]]
    for rank in range(size):
        full = list(BatchSampler(7, batch, World(rank, size)).steps(count, epoch))
        assert all(equal_steps(*steps) for steps in zip(full[first:], workers[rank], strict=True))
        assert len(full) == steps_per_epoch(count, batch)
    stored = [
        rows for rank in range(size) for rows, _, _ in BatchSampler(7, batch, World(rank, size)).steps(count, None)
    ]
    assert sorted(np.concatenate(stored)) == list(range(count))


def equal_steps(one: tuple, two: tuple) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize(("epoch", "first"), [(0, 0), (3, 2), (None, 0), (1, 6)])
def test_node_and_device_loaders_are_bit_identical(size, epoch, first):
    images = noise_images(41)
    for rank in range(size):
        sampler = BatchSampler(5, 8, World(rank, size))
        node = NodeLoader(images, sampler, CPU).batches(epoch, first)  # reuses its buffers
        device = DeviceLoader(images, sampler, CPU).batches(epoch, first)
        planned = list(sampler.steps(len(images), epoch, first))
        assert len(planned) == 6 - first
        for one, two, (rows, positions, count) in zip(node, device, planned, strict=True):
            assert torch.equal(one.images, two.images)
            assert np.array_equal(one.images.numpy(), images[rows])
            assert torch.equal(one.positions, two.positions)
            assert one.positions.tolist() == positions.tolist()
            assert one.count == two.count == count
            assert one.images.dtype == torch.uint8


def test_spaced_images_are_spread_over_the_split(tmp_path):
    images = noise_images(41)
    dataset = make_dataset(tmp_path, {"train": [20, 20, 1]})
    sampler = BatchSampler(5, 8)
    loaders = [NodeLoader(images, sampler, CPU), DeviceLoader(images, sampler, CPU), stream_loader(dataset, sampler)]
    for count in (0, 3, 25, 41, 99):
        for loader in loaders:
            assert np.array_equal(loader.spaced_images(count).numpy(), images[evenly_spaced(41, count)])
    assert evenly_spaced(41, 4).tolist() == [0, 10, 20, 30]
    assert {len(loader) for loader in loaders} == {41}


def stream_loader(dataset, sampler) -> StreamLoader:
    def local(epoch: int | None) -> Iterator[np.ndarray]:
        return iter_shards(dataset, "train", sampler.seed, epoch)

    return StreamLoader(local, partial(dataset.images, "train"), dataset.count("train"), sampler, CPU)


def test_a_stream_yields_each_image_once_in_an_order_of_its_epoch(tmp_path):
    dataset = make_dataset(tmp_path, {"train": [9, 9, 9, 9, 5]})
    loader = stream_loader(dataset, BatchSampler(5, 8))
    orders = []
    for epoch in (0, 1, 0, None):
        batches = list(loader.batches(epoch))
        assert [batch.count for batch in batches] == [len(batch.images) for batch in batches]
        assert len(batches) == steps_per_epoch(41, 8)
        assert max(batch.count for batch in batches) - min(batch.count for batch in batches) <= 1
        images = np.concatenate([batch.images.numpy() for batch in batches])
        assert np.array_equal(images[np.argsort(image_ids(images))], noise_images(41))
        orders.append(image_ids(images))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[3] == list(range(41))


def test_buffer_of_a_stream_mixes_differently_in_each_epoch_and_worker():
    images, orders = noise_images(60, 2), []
    for seed, rank, epoch in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        sampler = BatchSampler(seed, 8, World(rank, 2))
        loader = StreamLoader(lambda epoch: iter([images]), lambda n: images[:n], 120, sampler, CPU)
        loader._position_and_count = lambda local: (0, local)
        orders.append([n for batch in loader.batches(epoch) for n in image_ids(batch.images.numpy())])
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(60)) for order in orders)


def test_batches_of_an_evaluation_are_whole_without_a_collective_operation(monkeypatch):
    """Workers of an evaluation may read different numbers of images."""
    monkeypatch.setattr(torch.distributed, "all_gather", lambda *_: pytest.fail("all_gather"))
    images = noise_images(11, 2)
    loader = StreamLoader(lambda epoch: iter([images]), lambda n: images[:n], 22, BatchSampler(0, 8, World(1, 2)), CPU)
    batches = list(loader.batches(None))
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), images)
    for batch in batches:
        assert batch.positions.tolist() == list(range(len(batch.images)))
        assert batch.count == len(batch.images)


@given(st.integers(1, 60), st.integers(1, 16), st.randoms())
@pytest.mark.parametrize("size", WORLDS)
def test_workers_of_a_stream_take_the_same_number_of_steps(size, count, batch, random):
    """Ray gives each worker the same number of rows; the last ones of some workers are padding."""
    images, max_local = noise_images(count, 2), -(-count // size)
    rows = [*range(count)] + [-1] * (max_local * size - count)
    random.shuffle(rows)
    ids, steps = [], []
    for rank in range(size):
        local_rows = [row for row in rows[rank * max_local : (rank + 1) * max_local] if row >= 0]
        local_images, sampler = images[local_rows], BatchSampler(0, batch, World(rank, size))
        loader = StreamLoader(
            lambda epoch, local=local_images: iter([local]), lambda n: images[:n], count, sampler, CPU
        )
        loader._position_and_count = lambda local: (0, local)
        batches = list(loader.batches(0))
        ids += [n for batch in batches if len(batch.images) for n in image_ids(batch.images.numpy())]
        steps.append(len(batches))
    assert sorted(ids) == list(range(count))
    assert set(steps) == {steps_per_epoch(count, batch)}


def test_positions_in_a_streamed_global_batch_follow_those_of_lower_ranks(monkeypatch):
    """Three workers as threads: each draws its noise and scales its gradient by its place in the global batch."""
    size, count, rank_of_thread, barrier = 3, 22, threading.local(), threading.Barrier(3, timeout=60)
    shared = [torch.zeros(1)] * size

    def all_gather(gathered, local):
        shared[rank_of_thread.value] = local
        barrier.wait()
        for into, value in zip(gathered, shared, strict=True):
            into.copy_(value)
        barrier.wait()

    def read(rank):
        rank_of_thread.value = rank
        local = noise_images(count, 2)[rank::size]
        loader = StreamLoader(lambda epoch: iter([local]), lambda n: local[:n], count, samplers[rank], CPU)
        return [(batch.positions.tolist(), batch.count, len(batch.images)) for batch in loader.batches(0)]

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    samplers = [BatchSampler(0, 8, World(rank, size)) for rank in range(size)]
    with ThreadPoolExecutor(size) as workers:
        steps = list(zip(*workers.map(read, range(size)), strict=True))
    assert len(steps) == 3
    for slices in steps:
        num_images = sum(local for _, _, local in slices)
        assert [count for _, count, _ in slices] == [num_images] * size
        assert [position for positions, _, _ in slices for position in positions] == list(range(num_images))
    assert sum(slices[0][1] for slices in steps) == count


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(1, 300), st.integers(0, 5))
def test_shuffling_and_regrouping_lose_nothing(lengths, size, seed):
    import aecore.data.loaders

    images = noise_images(sum(lengths), 2)
    chunks = np.split(images, np.cumsum(lengths)[:-1]) if lengths else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aecore.data.loaders, "SHUFFLE_BUFFER_BYTES", 150 * 4)
        shuffled = list(shuffle_rows(iter(chunks), np.random.default_rng(seed)))
    assert sorted(n for chunk in shuffled if len(chunk) for n in image_ids(chunk)) == list(range(len(images)))
    sizes = [size] * (-(-len(images) // size) + 1)
    groups = list(regroup(iter(chunks), sizes))
    assert [len(group) for group in groups[:-2]] == sizes[:-2]
    assert len(groups) == len(sizes)
    assert np.array_equal(np.concatenate([images[:0], *[group for group in groups if len(group)]]), images)


def test_a_buffer_mixes_across_shards():
    images = noise_images(4096, 2)
    shuffled = np.concatenate(list(shuffle_rows(iter(np.split(images, 16)), np.random.default_rng(0))))
    positions = np.empty(4096)
    positions[image_ids(shuffled)] = np.arange(4096)
    assert abs(np.corrcoef(positions, np.arange(4096))[0, 1]) < 0.1


def test_a_flip_depends_on_the_counters_alone():
    recipe = check_recipe({"data": {"flip": True}, "optim": {"seed": 3}})
    images, count = torch.from_numpy(noise_images(24, 16)), 24
    flipped, target = make_training_pair(recipe, Batch(images, torch.arange(count), count), 7)
    assert torch.equal(flipped, target)
    straight, _ = make_training_pair(check_recipe({}), Batch(images, torch.arange(count), count), 7)
    mirrored = [not torch.equal(a, b) for a, b in zip(flipped, straight, strict=True)]
    assert 4 < sum(mirrored) < 20
    assert all(torch.equal(flipped[i], straight[i].flip(2)) for i in range(count) if mirrored[i])
    for size in WORLDS:
        slices = [torch.from_numpy(p) for p in np.array_split(np.arange(count), size)]
        sliced = torch.cat([make_training_pair(recipe, Batch(images[p], p, count), 7)[0] for p in slices])
        assert torch.equal(flipped, sliced)
    other = make_training_pair(recipe, Batch(images, torch.arange(count), count), 8)[0]
    assert not torch.equal(flipped, other)


def test_a_resumed_stream_restarts_its_epoch(tmp_path, caplog):
    """Without noise and with constant weights, the epoch's mean shows that each image was used once."""
    dataset = make_dataset(tmp_path, {"train": [9, 9, 3]}, size=16)
    model = {"z_dim": 2, "channels": [2, 2, 2, 2], "norm": "none"}
    recipe = check_recipe({"model": model, "loss": {"kl_factor": 0}, "optim": {"epochs": 2, "batch": 8, "lr": 1e-12}})

    def train_epochs(loader, progress: TrainState) -> list[loop.EpochEnd]:
        valid = NodeLoader(images[:7], sampler, CPU)
        run = loop.TrainingRun(recipe, build_model(recipe, ImageShape(16, 1)), loader, valid, state=progress)
        return [event for event in loop.fit(run) if isinstance(event, loop.EpochEnd)]

    images = noise_images(21, 16)
    sampler = BatchSampler(0, 8)
    cached = train_epochs(NodeLoader(images, sampler, CPU), TrainState())
    streamed = train_epochs(stream_loader(dataset, sampler), TrainState())
    within = TrainState(epochs=1, step=4, samples=29, sums={"recon": 1e9, "kl": 0.0, "count": 8.0})
    resumed = train_epochs(stream_loader(dataset, sampler), within)
    assert "repeating 1 steps of epoch 2" in caplog.text
    assert (within.step, within.samples) == (6, 42)
    for key in ("train_recon", "valid_recon", "valid_psnr"):
        assert cached[-1].metrics[key] == pytest.approx(streamed[-1].metrics[key], rel=1e-5)
        assert cached[-1].metrics[key] == pytest.approx(resumed[-1].metrics[key], rel=1e-5)


def test_spaced_images_of_a_large_stream_are_read_from_few_shards(tmp_path):
    dataset = make_dataset(tmp_path, {"train": [2] * 20})
    loader = stream_loader(dataset, BatchSampler(5, 8))
    assert image_ids(loader.spaced_images(4).numpy()) == [0, 10, 20, 30]
    assert len(set(image_ids(loader.spaced_images(30).numpy()))) == 30
