"""Corruptions: each does what its section says, repeats exactly, and is the same on any number of workers."""

import numpy as np
import pytest
import torch

from aecore.config import check_recipe
from aecore.data.loaders import Batch
from aecore.model.corruptions import BatchNoise, corrupt, make_eval_pair, make_training_pair

COUNT, SIZE = 24, 32
TASKS = {
    "denoise": {"kind": "denoise", "sigma": 0.1},
    "drop": {"kind": "drop", "keep": 0.2},
    "drop to random": {"kind": "drop", "keep": 0.5, "fill": "random"},
    "recolor": {"kind": "recolor"},
    "inpaint": {"kind": "inpaint", "block": 0.25, "share": 0.25, "fill": "gray"},
}


def images(channels=3):
    return torch.randint(60, 200, (COUNT, SIZE, SIZE, channels), generator=torch.manual_seed(0)).to(torch.uint8)


def recipe_of(task, seed=3):
    return check_recipe({"task": task, "data": {"flip": True}, "optim": {"seed": seed}})


def whole(channels=3):
    return Batch(images(channels), torch.arange(COUNT), COUNT)


def drawn(task, clean):
    draws = BatchNoise(torch.Generator().manual_seed(0), torch.arange(len(clean)), len(clean))
    return corrupt(check_recipe({"task": task}).task, clean, draws)


@pytest.mark.parametrize("pair", [make_training_pair, make_eval_pair])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_counters_alone_decide(task, pair):
    recipe = recipe_of(task)
    seen, clean = pair(recipe, whole(), 7)
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert not torch.equal(seen, clean)
    assert torch.equal(seen, pair(recipe, whole(), 7)[0])
    for workers in (2, 3, 5):
        parts = [torch.from_numpy(p) for p in np.array_split(np.arange(COUNT), workers)]
        assert torch.equal(seen, torch.cat([pair(recipe, Batch(images()[p], p, COUNT), 7)[0] for p in parts]))
    if task["kind"] != "recolor":
        assert not torch.equal(seen, pair(recipe, whole(), 8)[0])
        assert not torch.equal(seen, pair(recipe_of(task, seed=4), whole(), 7)[0])


def test_training_and_judging_draw_differently():
    recipe = check_recipe({"task": TASKS["denoise"]})
    assert not torch.equal(make_training_pair(recipe, whole(), 0)[0], make_eval_pair(recipe, whole(), 0)[0])


def test_reconstruct_sees_the_target():
    seen, clean = make_training_pair(check_recipe({}), whole(), 0)
    assert seen is clean


def test_denoise_adds_noise_of_its_sigma():
    clean = torch.full((64, 3, 32, 32), 0.5)
    noise = drawn({"kind": "denoise", "sigma": 0.1}, clean) - clean
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().abs() < 1e-3
    assert torch.corrcoef(noise.flatten(1))[0, 1:].abs().max() < 0.1
    assert {*drawn({"kind": "denoise", "sigma": 100}, clean).unique().tolist()} >= {0.0, 1.0}


@pytest.mark.parametrize(("fill", "shade"), [("black", 0.0), ("gray", 0.5)])
def test_drop_keeps_its_share_in_all_channels(fill, shade):
    clean = torch.full((64, 3, 32, 32), 0.25)
    seen = drawn({"kind": "drop", "keep": 0.2, "fill": fill}, clean)
    kept = seen == clean
    assert kept.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(kept[:, 0], kept[:, 2])
    assert (seen[~kept] == shade).all()


def test_drop_to_random_fills_with_uniform_colour():
    clean = torch.zeros(64, 3, 32, 32)
    filled = drawn({"kind": "drop", "keep": 0, "fill": "random"}, clean)
    assert filled.mean().item() == pytest.approx(0.5, abs=0.01)
    assert filled.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert not torch.equal(filled[:, 0], filled[:, 1])


def test_recolor_sees_gray_of_the_same_brightness():
    clean = torch.rand(8, 3, 32, 32)
    seen = drawn({"kind": "recolor"}, clean)
    assert torch.equal(seen[:, 0], seen[:, 2])
    torch.testing.assert_close(seen[:, 0], 0.299 * clean[:, 0] + 0.587 * clean[:, 1] + 0.114 * clean[:, 2])
    with pytest.raises(ValueError, match="colour images"):
        drawn({"kind": "recolor"}, clean[:, :1])


@pytest.mark.parametrize(
    ("block", "share", "most"), [(0.25, 0.0625, 64), (0.25, 0.25, 256), (1, 1, 1024), (0.01, 0.5, 512)]
)
def test_inpaint_hides_whole_blocks(block, share, most):
    clean = torch.full((64, 3, 32, 32), 0.25)
    hidden = (drawn({"kind": "inpaint", "block": block, "share": share}, clean) == 0).float()
    cover = hidden[:, 0].flatten(1).sum(1)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert cover.max() <= most
    assert cover.mean() > 0.6 * most
    if share == 0.0625:  # one block of 8 x 8, anywhere
        assert (cover == 64).all()
        tops = hidden[:, 0].amax(2).argmax(1)
        assert (tops.min(), tops.max()) == (0, 24)


@pytest.mark.parametrize(("block", "share"), [(0.25, 0.5), (0.01, 1), (1, 1), (0.4, 0.9)])
def test_holes_are_where_they_were_drawn(block, share):
    clean = torch.ones(5, 3, SIZE, SIZE)
    seen = drawn({"kind": "inpaint", "block": block, "share": share}, clean)
    side = max(1, round(block * SIZE))
    count = max(1, round(share * SIZE**2 / side**2))
    corners = (torch.rand(5, 2, count, 1, generator=torch.Generator().manual_seed(0)) * (SIZE - side + 1)).long()
    for image, (tops, lefts) in zip(clean, corners.squeeze(-1), strict=True):
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
            image[:, top : top + side, left : left + side] = 0
    assert torch.equal(seen, clean)
