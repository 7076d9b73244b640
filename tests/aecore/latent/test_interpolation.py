import pytest
import torch

from aecore.latent.interpolation import INTERPOLATIONS, NUM_NEIGHBOURS, spherical, through_neighbours

STEPS = 21


def ring(n=400, z_dim=6, radius=10.0):
    """Points on a noisy circle about (5, 5, ...)."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(n, generator=generator) * 2 * torch.pi
    z = 0.1 * torch.randn(n, z_dim, generator=generator)
    z[:, 0] += radius * angle.cos()
    z[:, 1] += radius * angle.sin()
    return z + 5


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_interpolation_goes_from_start_to_end_in_even_steps(name):
    points = torch.randn(300, 8, generator=torch.manual_seed(0))
    path = INTERPOLATIONS[name](points[0], points[1], STEPS, points)
    assert path.shape == (STEPS, 8)
    torch.testing.assert_close(path[0], points[0])
    torch.testing.assert_close(path[-1], points[1], atol=1e-5, rtol=1e-5)
    lengths = (path[1:] - path[:-1]).norm(dim=1)
    assert lengths.max() < 2 * lengths.median()


def test_spherical_changes_the_radius_linearly():
    points = ring()
    centre = points.mean(0)
    start, end = centre.clone(), centre.clone()
    start[0] += 3
    end[1] += 5
    path = spherical(start, end, 9, points)
    torch.testing.assert_close((path - centre).norm(dim=1), torch.linspace(3, 5, 9))


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_spherical_without_a_great_circle_is_straight(factor):
    points = torch.randn(50, 3)
    centre, arm = points.mean(0), torch.tensor([1.0, 2, 3])
    start, end = centre + arm, centre + factor * arm
    path = spherical(start, end, 5, points)
    assert torch.isfinite(path).all()
    torch.testing.assert_close(path[2], centre + (1 + factor) / 2 * arm, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(spherical(end, start, 5, points), path.flip(0))


def test_neighbours_path_goes_around_a_hole():
    points = ring()
    start, end = torch.full((6,), 5.0), torch.full((6,), 5.0)
    start[0], end[0] = 15, -5
    path = through_neighbours(start, end, STEPS, points)
    radius = (path[:, :2] - 5).norm(dim=1)
    assert radius.min() > 9
    assert INTERPOLATIONS["straight"](start, end, STEPS, points)[10, :2].sub(5).norm() < 1e-4


def test_neighbours_path_takes_two_short_edges_in_place_of_a_long_one():
    """By squared lengths 1.25 + 1.25 < 4; by lengths the straight edge would be shorter."""
    path = through_neighbours(torch.zeros(2), torch.tensor([2.0, 0]), 3, torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(path, torch.tensor([[0.0, 0], [1, 0.5], [2, 0]]))


def test_neighbours_path_connects_separate_clusters():
    points = torch.cat([torch.randn(50, 4, generator=torch.manual_seed(0)), torch.randn(50, 4) + 100])
    path = through_neighbours(points[0], points[60], STEPS, points)
    assert torch.isfinite(path).all()
    torch.testing.assert_close(path[-1], points[60])
    assert torch.isfinite(through_neighbours(points[0], points[1], 5, points[:0])).all()


def test_neighbours_path_is_the_shortest_in_the_graph_of_ends_and_points():
    """The graph of the points alone, which is kept for the next path, has other edges near the ends."""
    generator = torch.manual_seed(0)
    for n in (2, 9, 11, 12, 13, 40):
        points = torch.randn(n, 3, generator=generator)
        start, end = torch.randn(2, 3, generator=generator)
        nodes = torch.cat([start[None], end[None], points]).double()
        lengths = torch.cdist(nodes, nodes).fill_diagonal_(torch.inf)
        nearest = lengths.topk(min(NUM_NEIGHBOURS, n + 1), largest=False)
        costs = torch.full_like(lengths, torch.inf).scatter(1, nearest.indices, nearest.values.square())
        costs = torch.minimum(costs, costs.T)
        for through in range(len(nodes)):  # Floyd and Warshall
            costs = torch.minimum(costs, costs[:, through, None] + costs[through])
        for _ in range(2):  # with the kept neighbours too
            path = through_neighbours(start, end, 2001, points).double()
            distances, rows = torch.cdist(nodes, path).min(1)
            passed = rows[distances < 1e-2].sort().values  # its corners
            cost = (path[passed[1:]] - path[passed[:-1]]).square().sum(1).sum()
            assert cost == pytest.approx(costs[0, 1].item(), rel=0.02)


def test_neighbours_of_points_are_computed_once(monkeypatch):
    points, sizes, cdist = torch.randn(300, 4), [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: sizes.append(len(a)) or cdist(a, b))
    for end in (1, 2, 3):
        through_neighbours(points[0], points[end], 5, points)
    assert sorted(sizes) == [2, 2, 2, 300]


def test_neighbours_path_reaches_ends_whose_squared_distance_exceeds_float32():
    points = torch.randn(30, 4, generator=torch.manual_seed(0))
    for magnitude in (1e20, 3e38):
        end = torch.full((4,), magnitude)
        path = through_neighbours(-end, end, 5, points)
        torch.testing.assert_close(path[[0, 1, 3, 4]], end * torch.tensor([-1, -0.5, 0.5, 1])[:, None])


@pytest.mark.parametrize("component", [torch.nan, torch.inf])
def test_neighbours_path_to_an_end_that_is_not_finite_is_refused(component: float):
    points = torch.randn(30, 4)
    with pytest.raises(ValueError, match="no path joins these z-points: one holds NaN"):
        through_neighbours(points[0], torch.tensor([0, component, 0, 0]), 5, points)
