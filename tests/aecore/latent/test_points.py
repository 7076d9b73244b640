"""Stored points: neighbours, the map and its inverse, thumbnails in the order of the rows, and their file."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from aecore.latent.points import StoredPoints, make_points

N, Z_DIM, SIZE = 60, 4, 48
Z = torch.randn(N, Z_DIM, generator=torch.Generator().manual_seed(0))
LEVELS = np.linspace(0, 255, N).astype(np.uint8)  # of gray, a different one for each image
IMAGES = np.broadcast_to(LEVELS[:, None, None, None], (N, SIZE, SIZE, 1))
SPLIT = torch.tensor([0] * 50 + [2] * 10, dtype=torch.uint8)


@pytest.fixture(scope="module")
def points() -> StoredPoints:
    return make_points(Z, IMAGES, SPLIT, {"Smiling": torch.arange(N).float()})


def test_the_map_fills_the_square_and_keeps_neighbours(points: StoredPoints):
    assert (points.method, points.xy.dtype, tuple(points.xy.shape)) == ("tsne", torch.float32, (N, 2))
    assert points.xy.abs().max() == 1
    assert (points.xy.amax(0) + points.xy.amin(0)).abs().max() < 1e-5
    clusters = torch.cat([Z[:30] * 0.1 + 5, Z[30:] * 0.1 - 5])
    xy = make_points(clusters, IMAGES, SPLIT, {}).xy
    distances, rows = make_points(clusters, IMAGES, SPLIT, {}).nearest_on_map(xy, 5)
    assert ((rows < 30) == (torch.arange(N)[:, None] < 30)).all()
    assert (distances[:, 0] == 0).all()


def test_few_points_are_mapped_by_pca():
    few = make_points(torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 1, 0], [2, 0, 0.1]]), IMAGES[:4], SPLIT[:4], {})
    assert few.method == "pca"
    torch.testing.assert_close(few.xy[:, 0].abs().max(), torch.tensor(1.0))
    order = few.xy[:, 0].argsort().tolist()
    assert order in ([0, 2, 3, 1], [1, 3, 2, 0])


def test_equal_points_have_a_map_without_nan():
    for count in (3, N):
        points = make_points(torch.full((count, 2), 0.3), IMAGES[:count], SPLIT[:count], {})
        assert torch.isfinite(points.xy).all()


def test_nearest_are_the_points_of_lowest_distance(points: StoredPoints):
    queries = torch.randn(5, Z_DIM, generator=torch.Generator().manual_seed(1))
    distances, rows = points.nearest(queries, 7)
    expected = (queries[:, None] - Z).double().square().sum(2).sqrt()
    np.testing.assert_array_equal(rows, expected.argsort(1)[:, :7])
    torch.testing.assert_close(distances, expected.sort(1).values[:, :7])
    assert points.nearest(queries, 100)[1].shape == (5, N)


@pytest.mark.parametrize("magnitude", [1e7, 1e20, 3e38])
def test_the_nearest_of_a_distant_z_point_are_in_order_with_finite_distances(points: StoredPoints, magnitude: float):
    """In float32 the distances are equal from 1e7 on, and their squares infinite from 1.8e19 on."""
    query = torch.zeros(1, Z_DIM)
    query[0, 0] = magnitude
    distances, rows = points.nearest(query, N)
    torch.testing.assert_close(distances, torch.full((1, N), float(query[0, 0])).double(), rtol=1e-6, atol=0)
    if magnitude == 1e7:
        np.testing.assert_array_equal(rows[0], Z[:, 0].argsort(descending=True))


def test_z_at_a_stored_place_is_its_z_point_and_between_two_their_mean(points: StoredPoints):
    torch.testing.assert_close(points.z_at(points.xy[:3], 8), Z[:3], atol=1e-5, rtol=1e-5)
    pair = StoredPoints(Z[:2], torch.tensor([[-1.0, 0], [1, 0]]), "pca", SPLIT[:2], points.sprites, 8, 32)
    torch.testing.assert_close(pair.z_at(torch.tensor([[0.0, 0.5]]), 2)[0], (Z[0] + Z[1]) / 2)
    near_first = pair.z_at(torch.tensor([[-0.5, 0.0]]), 2)[0]  # distances 0.5 and 1.5: weights 9 to 1
    torch.testing.assert_close(near_first, 0.9 * Z[0] + 0.1 * Z[1])


def test_sprites_are_a_webp_grid_in_the_order_of_the_rows(points: StoredPoints):
    with Image.open(io.BytesIO(points.sprites)) as sheet:
        assert (sheet.format, sheet.size) == ("WEBP", (8 * 32, 8 * 32))
    assert (points.columns, points.size) == (8, 32)
    for row in (0, 7, 8, 31, 59):
        thumbnail = points.thumbnail(row)
        assert thumbnail.shape == (32, 32, 3)
        assert abs(float(thumbnail.mean()) - LEVELS[row]) < 3


def test_small_images_are_not_enlarged():
    assert make_points(Z[:4], IMAGES[:4, :16, :16], SPLIT[:4], {}).size == 16


def test_the_file_holds_all(points: StoredPoints):
    loaded = StoredPoints.from_tensors(load(save(points.to_tensors())))
    for name in ("z", "xy", "split"):
        assert torch.equal(getattr(loaded, name), getattr(points, name))
    assert (loaded.sprites, loaded.columns, loaded.size, loaded.method) == (points.sprites, 8, 32, "tsne")
    assert torch.equal(loaded.attributes["Smiling"], points.attributes["Smiling"])


def test_attributes_of_a_file_are_in_the_order_of_their_names():
    attributes = {f"attribute {i}": torch.arange(4) for i in range(9)}
    points = make_points(Z[:4], IMAGES[:4], SPLIT[:4], attributes)
    assert list(StoredPoints.from_tensors(load(save(points.to_tensors()))).attributes) == list(attributes)


@pytest.mark.parametrize("change", ["z", "map.tsne", "split", "attribute.Smiling", "sprites", "grid"])
def test_a_damaged_file_is_refused(points: StoredPoints, change: str):
    tensors = points.to_tensors()
    for damaged in (tensors | {change: tensors[change][1:]}, {k: v for k, v in tensors.items() if k != change}):
        if change == "attribute.Smiling" and change not in damaged:
            continue  # points without attributes
        with pytest.raises(ValueError, match="the stored points"):
            StoredPoints.from_tensors(damaged)
