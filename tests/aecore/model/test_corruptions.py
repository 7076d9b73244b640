"""Corruptions follow their recipe section, repeat exactly, and do not depend on the number of workers."""

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


def make_images(channels=3):
    return torch.randint(60, 200, (COUNT, SIZE, SIZE, channels), generator=torch.manual_seed(0)).to(torch.uint8)


def make_recipe(task, seed=3):
    return check_recipe({"task": task, "data": {"flip": True}, "optim": {"seed": seed}})


def global_batch(channels=3):
    return Batch(make_images(channels), torch.arange(COUNT), COUNT)


def corrupt_with(task, clean):
    noise = BatchNoise(torch.Generator().manual_seed(0), torch.arange(len(clean)), len(clean))
    return corrupt(check_recipe({"task": task}).task, clean, noise)


@pytest.mark.parametrize("make_pair", [make_training_pair, make_eval_pair])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_corruption_is_a_function_of_seed_and_step_for_any_number_of_workers(task, make_pair):
    recipe = make_recipe(task)
    corrupted, clean = make_pair(recipe, global_batch(), 7)
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    assert not torch.equal(corrupted, clean)
    assert torch.equal(corrupted, make_pair(recipe, global_batch(), 7)[0])
    for workers in (2, 3, 5):
        rows_by_worker = [torch.from_numpy(rows) for rows in np.array_split(np.arange(COUNT), workers)]
        assert torch.equal(
            corrupted,
            torch.cat([make_pair(recipe, Batch(make_images()[rows], rows, COUNT), 7)[0] for rows in rows_by_worker]),
        )
    if task["kind"] != "recolor":
        assert not torch.equal(corrupted, make_pair(recipe, global_batch(), 8)[0])
        assert not torch.equal(corrupted, make_pair(make_recipe(task, seed=4), global_batch(), 7)[0])


def test_training_and_evaluation_have_different_noise():
    recipe = check_recipe({"task": TASKS["denoise"]})
    assert not torch.equal(
        make_training_pair(recipe, global_batch(), 0)[0], make_eval_pair(recipe, global_batch(), 0)[0]
    )


def test_reconstruct_does_not_corrupt():
    corrupted, clean = make_training_pair(check_recipe({}), global_batch(), 0)
    assert corrupted is clean


def test_denoise_adds_noise_of_sigma():
    clean = torch.full((64, 3, 32, 32), 0.5)
    noise = corrupt_with({"kind": "denoise", "sigma": 0.1}, clean) - clean
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().abs() < 1e-3
    assert torch.corrcoef(noise.flatten(1))[0, 1:].abs().max() < 0.1
    assert {*corrupt_with({"kind": "denoise", "sigma": 100}, clean).unique().tolist()} >= {0.0, 1.0}


@pytest.mark.parametrize(("fill", "shade"), [("black", 0.0), ("gray", 0.5)])
def test_drop_keeps_the_same_pixels_in_all_channels(fill, shade):
    clean = torch.full((64, 3, 32, 32), 0.25)
    corrupted = corrupt_with({"kind": "drop", "keep": 0.2, "fill": fill}, clean)
    kept_mask = corrupted == clean
    assert kept_mask.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(kept_mask[:, 0], kept_mask[:, 2])
    assert (corrupted[~kept_mask] == shade).all()


def test_drop_to_random_fills_with_uniform_colour():
    clean = torch.zeros(64, 3, 32, 32)
    filled = corrupt_with({"kind": "drop", "keep": 0, "fill": "random"}, clean)
    assert filled.mean().item() == pytest.approx(0.5, abs=0.01)
    assert filled.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert not torch.equal(filled[:, 0], filled[:, 1])


def test_recolor_input_is_gray_of_the_same_brightness():
    clean = torch.rand(8, 3, 32, 32)
    corrupted = corrupt_with({"kind": "recolor"}, clean)
    assert torch.equal(corrupted[:, 0], corrupted[:, 2])
    torch.testing.assert_close(corrupted[:, 0], 0.299 * clean[:, 0] + 0.587 * clean[:, 1] + 0.114 * clean[:, 2])
    with pytest.raises(ValueError, match="colour images"):
        corrupt_with({"kind": "recolor"}, clean[:, :1])


@pytest.mark.parametrize(
    ("block", "share", "max_hidden"), [(0.25, 0.0625, 64), (0.25, 0.25, 256), (1, 1, 1024), (0.01, 0.5, 512)]
)
def test_inpaint_hides_whole_blocks(block, share, max_hidden):
    clean = torch.full((64, 3, 32, 32), 0.25)
    hidden = (corrupt_with({"kind": "inpaint", "block": block, "share": share}, clean) == 0).float()
    num_hidden = hidden[:, 0].flatten(1).sum(1)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert num_hidden.max() <= max_hidden
    assert num_hidden.mean() > 0.6 * max_hidden
    if share == 0.0625:  # one block of 8 x 8, anywhere
        assert (num_hidden == 64).all()
        tops = hidden[:, 0].amax(2).argmax(1)
        assert (tops.min(), tops.max()) == (0, 24)


@pytest.mark.parametrize(("block", "share"), [(0.25, 0.5), (0.01, 1), (1, 1), (0.4, 0.9)])
def test_inpaint_hides_the_holes_at_their_random_corners(block, share):
    clean = torch.ones(5, 3, SIZE, SIZE)
    corrupted = corrupt_with({"kind": "inpaint", "block": block, "share": share}, clean)
    side = max(1, round(block * SIZE))
    num_holes = max(1, round(share * SIZE**2 / side**2))
    corners = (torch.rand(5, 2, num_holes, 1, generator=torch.Generator().manual_seed(0)) * (SIZE - side + 1)).long()
    for image, (tops, lefts) in zip(clean, corners.squeeze(-1), strict=True):
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
            image[:, top : top + side, left : left + side] = 0
    assert torch.equal(corrupted, clean)
