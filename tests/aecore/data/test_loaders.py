"""The feeds against the plan, against each other, and a stream's own rules; and what is drawn for each image."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aecore.config import check_recipe
from aecore.data.loaders import Batch, DeviceLoader, NodeLoader, StreamLoader, regroup, shuffle_rows
from aecore.data.shard_stream import iter_shards
from aecore.data.shuffle import BatchSampler, World, evenly_spaced, plan_epoch, steps_per_epoch
from aecore.model.autoencoder import ImageShape, build_model
from aecore.model.corruptions import make_training_pair
from aecore.training import loop
from aecore.training.state import TrainingRun, TrainState
from tests.synthetic_dataset import make_dataset, numbers, pixels

CPU = torch.device("cpu")
WORLDS = [1, 2, 3, 8]


@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 3), st.data())
@pytest.mark.parametrize("size", WORLDS)
def test_an_order_is_complete_disjoint_and_resumable(size, count, batch, epoch, data):
    first = data.draw(st.integers(0, steps_per_epoch(count, batch)))
    plan = plan_epoch(7, epoch, count)
    workers = [list(BatchSampler(7, batch, World(rank, size)).steps(count, epoch, first)) for rank in range(size)]
    together = [np.concatenate([rows for rows, _, _ in parts]) for parts in zip(*workers, strict=True)]
    assert np.array_equal(np.concatenate([[], *together]), plan[first * batch :])
    assert [len(rows) for rows in together] == [count for _, _, count in workers[0]]
    for rank in range(size):
        whole = list(BatchSampler(7, batch, World(rank, size)).steps(count, epoch))
        assert all(same(*both) for both in zip(whole[first:], workers[rank], strict=True))
        assert len(whole) == steps_per_epoch(count, batch)
    stored = [
        rows for rank in range(size) for rows, _, _ in BatchSampler(7, batch, World(rank, size)).steps(count, None)
    ]
    assert sorted(np.concatenate(stored)) == list(range(count))


def same(one: tuple, two: tuple) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize(("epoch", "first"), [(0, 0), (3, 2), (None, 0), (1, 6)])
def test_node_and_device_feeds_are_equal_bit_by_bit(size, epoch, first):
    images = pixels(41)
    for rank in range(size):
        order = BatchSampler(5, 8, World(rank, size))
        node = NodeLoader(images, order, CPU).batches(epoch, first)  # whose memory comes round again
        device = DeviceLoader(images, order, CPU).batches(epoch, first)
        planned = list(order.steps(len(images), epoch, first))
        assert len(planned) == 6 - first
        for one, two, (rows, positions, count) in zip(node, device, planned, strict=True):
            assert torch.equal(one.images, two.images)
            assert np.array_equal(one.images.numpy(), images[rows])
            assert torch.equal(one.positions, two.positions)
            assert one.positions.tolist() == positions.tolist()
            assert one.count == two.count == count
            assert one.images.dtype == torch.uint8


def test_a_few_images_are_spread_over_the_split(tmp_path):
    images = pixels(41)
    dataset = make_dataset(tmp_path, {"train": [20, 20, 1]})
    order = BatchSampler(5, 8)
    feeds = [NodeLoader(images, order, CPU), DeviceLoader(images, order, CPU), stream_feed(dataset, order)]
    for count in (0, 3, 25, 41, 99):
        for feed in feeds:
            assert np.array_equal(feed.spaced_images(count).numpy(), images[evenly_spaced(41, count)])
    assert evenly_spaced(41, 4).tolist() == [0, 10, 20, 30]
    assert {len(feed) for feed in feeds} == {41}


def stream_feed(dataset, order) -> StreamLoader:
    def local(epoch: int | None) -> Iterator[np.ndarray]:
        return iter_shards(dataset, "train", order.seed, epoch)

    return StreamLoader(local, partial(dataset.images, "train"), dataset.count("train"), order, CPU)


def test_a_stream_gives_each_image_once_in_an_order_of_its_epoch(tmp_path):
    dataset = make_dataset(tmp_path, {"train": [9, 9, 9, 9, 5]})
    feed = stream_feed(dataset, BatchSampler(5, 8))
    orders = []
    for epoch in (0, 1, 0, None):
        batches = list(feed.batches(epoch))
        assert [batch.count for batch in batches] == [len(batch.images) for batch in batches]
        assert len(batches) == steps_per_epoch(41, 8)
        assert max(batch.count for batch in batches) - min(batch.count for batch in batches) <= 1
        images = np.concatenate([batch.images.numpy() for batch in batches])
        assert np.array_equal(images[np.argsort(numbers(images))], pixels(41))
        orders.append(numbers(images))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[3] == list(range(41))


@given(st.integers(1, 60), st.integers(1, 16), st.randoms())
@pytest.mark.parametrize("size", WORLDS)
def test_shares_of_a_stream_take_equally_many_steps(size, count, batch, random):
    """Ray gives each worker the same number of rows; of some workers the last ones do not count."""
    images, share = pixels(count, 2), -(-count // size)
    rows = [*range(count)] + [-1] * (share * size - count)
    random.shuffle(rows)
    seen, steps = [], []
    for rank in range(size):
        mine = [row for row in rows[rank * share : (rank + 1) * share] if row >= 0]
        feed = StreamLoader(lambda epoch, mine=mine: iter([images[mine]]), lambda n: images[:n], count,
                          BatchSampler(0, batch, World(rank, size)), CPU)  # fmt: skip
        feed._position_and_count = lambda mine: (0, mine)
        batches = list(feed.batches(0))
        seen += [n for got in batches if len(got.images) for n in numbers(got.images.numpy())]
        steps.append(len(batches))
    assert sorted(seen) == list(range(count))
    assert set(steps) == {steps_per_epoch(count, batch)}


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(1, 300), st.integers(0, 5))
def test_shuffling_and_regrouping_lose_nothing(lengths, size, seed):
    import aecore.data.loaders

    images = pixels(sum(lengths), 2)
    pieces = np.split(images, np.cumsum(lengths)[:-1]) if lengths else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aecore.data.loaders, "SHUFFLE_BUFFER_BYTES", 150 * 4)
        mixed = list(shuffle_rows(iter(pieces), np.random.default_rng(seed)))
    assert sorted(n for piece in mixed if len(piece) for n in numbers(piece)) == list(range(len(images)))
    sizes = [size] * (-(-len(images) // size) + 1)
    groups = list(regroup(iter(pieces), sizes))
    assert [len(group) for group in groups[:-2]] == sizes[:-2]
    assert len(groups) == len(sizes)
    assert np.array_equal(np.concatenate([images[:0], *[group for group in groups if len(group)]]), images)


def test_a_buffer_mixes_across_shards():
    images = pixels(4096, 2)
    mixed = np.concatenate(list(shuffle_rows(iter(np.split(images, 16)), np.random.default_rng(0))))
    places = np.empty(4096)
    places[numbers(mixed)] = np.arange(4096)
    assert abs(np.corrcoef(places, np.arange(4096))[0, 1]) < 0.1


def test_a_flip_depends_on_the_counters_alone():
    recipe = check_recipe({"data": {"flip": True}, "optim": {"seed": 3}})
    images, count = torch.from_numpy(pixels(24, 16)), 24
    whole, target = make_training_pair(recipe, Batch(images, torch.arange(count), count), 7)
    assert torch.equal(whole, target)
    straight, _ = make_training_pair(check_recipe({}), Batch(images, torch.arange(count), count), 7)
    mirrored = [not torch.equal(a, b) for a, b in zip(whole, straight, strict=True)]
    assert 4 < sum(mirrored) < 20
    assert all(torch.equal(whole[i], straight[i].flip(2)) for i in range(count) if mirrored[i])
    for size in WORLDS:
        parts = [torch.from_numpy(p) for p in np.array_split(np.arange(count), size)]
        again = torch.cat([make_training_pair(recipe, Batch(images[p], p, count), 7)[0] for p in parts])
        assert torch.equal(whole, again)
    other = make_training_pair(recipe, Batch(images, torch.arange(count), count), 8)[0]
    assert not torch.equal(whole, other)


def test_a_stream_trains_and_begins_its_epoch_again(tmp_path, caplog):
    """Without noise and with weights that stay, the epoch's mean tells that each image was seen once."""
    dataset = make_dataset(tmp_path, {"train": [9, 9, 3]}, size=16)
    model = {"z_dim": 2, "channels": [2, 2, 2, 2], "norm": "none"}
    recipe = check_recipe({"model": model, "loss": {"kl_factor": 0}, "optim": {"epochs": 2, "batch": 8, "lr": 1e-12}})

    def told(feed, progress: TrainState) -> list[loop.EpochEnd]:
        network = build_model(recipe, ImageShape(16, 1))
        run = TrainingRun(
            recipe, network, network, loop.make_optimizer(network, recipe), CPU, World(), progress,
            train=feed, valid=NodeLoader(images[:7], order, CPU),
        )  # fmt: skip
        return [event for event in loop.fit(run) if isinstance(event, loop.EpochEnd)]

    images = pixels(21, 16)
    order = BatchSampler(0, 8)
    cached = told(NodeLoader(images, order, CPU), TrainState())
    streamed = told(stream_feed(dataset, order), TrainState())
    within = TrainState(epochs=1, step=4, samples=29, sums={"recon": 1e9, "kl": 0.0, "count": 8.0})
    resumed = told(stream_feed(dataset, order), within)
    assert "repeating 1 steps of epoch 2" in caplog.text
    assert (within.step, within.samples) == (6, 42)
    for key in ("train_recon", "valid_recon", "valid_psnr"):
        assert cached[-1].metrics[key] == pytest.approx(streamed[-1].metrics[key], rel=1e-5)
        assert cached[-1].metrics[key] == pytest.approx(resumed[-1].metrics[key], rel=1e-5)


def test_of_a_large_stream_a_few_shards_are_read(tmp_path):
    dataset = make_dataset(tmp_path, {"train": [2] * 20})
    feed = stream_feed(dataset, BatchSampler(5, 8))
    assert numbers(feed.spaced_images(4).numpy()) == [0, 10, 20, 30]
    assert len(set(numbers(feed.spaced_images(30).numpy()))) == 30
