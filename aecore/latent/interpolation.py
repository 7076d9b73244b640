"""Interpolation between z-points.

An interpolation is a function `f(start, end, steps, points)` that returns z-points float32 `(steps, z_dim)` from
`start` to `end`, both `(z_dim,)`, evenly spaced; `points` (n, z_dim) are z-points of real images. To add one, write a
function and list it in INTERPOLATIONS.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aecore.latent.points import StoredPoints
from aecore.latent.samplers import LatentStats

NUM_NEIGHBOURS = 10
MAX_CACHED_NEIGHBOURS = 80  # of a point: more take tens of MB


def straight(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """Interpolate along the straight line."""
    return torch.lerp(start, end, torch.linspace(0, 1, steps)[:, None])


def spherical(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """Interpolate along the great circle about the mean of `points` (Shoemake 1985; White 2016).

    The distance from the mean changes linearly. If start and end define no great circle, because they lie in one
    direction from the mean or in opposite ones, or one is the mean, the path is straight.
    """
    centre, t = points.mean(0), torch.linspace(0, 1, steps)[:, None]
    a, b = start - centre, end - centre
    radius = torch.lerp(a.norm(), b.norm(), t)
    cosine = F.cosine_similarity(a, b, dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if angle.sin() < 1e-4 or not a.any() or not b.any():
        return straight(start, end, steps, points)
    rotated = torch.sin((1 - t) * angle) * F.normalize(a, dim=0) + torch.sin(t * angle) * F.normalize(b, dim=0)
    return centre + radius * rotated / torch.sin(angle)


def through_neighbours(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """Interpolate along the shortest path from neighbour to neighbour among `points`; an edge costs its length squared.

    The graph joins each point to its 10 nearest ones, or to more if start and end are not connected. With squared
    lengths many short edges through dense regions cost less than one long edge (Bijral et al. 2011, p = 2). Raises
    ValueError if start or end is not finite.
    """
    from scipy.sparse.csgraph import dijkstra

    nodes = torch.cat([start[None], end[None], points]).double()  # squares overflow float32 from 1.8e19 on
    to_ends = torch.cdist(nodes[:2], nodes)  # (2, nodes)
    if not to_ends[0, 1].square().isfinite():
        raise ValueError("no path joins these z-points: one holds NaN or a number too large; take finite float32 ones")
    to_ends[:, :2].fill_diagonal_(torch.inf)
    num_neighbours = min(NUM_NEIGHBOURS, len(nodes) - 1)
    while True:  # the graph of all neighbours has the edge from start to end
        graph = _neighbour_graph(to_ends, points, num_neighbours)
        costs, predecessors = dijkstra(graph, directed=False, indices=0, return_predecessors=True)
        if np.isfinite(costs[1]):
            break
        num_neighbours = min(2 * num_neighbours, len(nodes) - 1)
    path = [1]  # from the end back to the start
    while path[-1] != 0:
        path.append(int(predecessors[path[-1]]))
    return _resample(nodes[path[::-1]], steps).float()


def _neighbour_graph(to_ends: Tensor, points: Tensor, num_neighbours: int):
    """Return the graph of start, end and `points`, in this order; `to_ends` (2, nodes) are their distances."""
    from scipy.sparse import csr_matrix

    of_ends = to_ends.topk(num_neighbours, largest=False)
    # A point's neighbours are among the ends and its neighbours without them, which are the same for all ends.
    k = min(num_neighbours, max(0, len(points) - 1))
    cached = k <= MAX_CACHED_NEIGHBOURS
    lengths, nodes = _cached_nearest_others(points) if cached else _nearest_others(points, k)
    lengths, nodes = lengths[:, :k], nodes[:, :k]
    lengths = torch.cat([to_ends[:, 2:].T, lengths], 1)
    nodes = torch.cat([torch.arange(2).expand(len(points), 2), nodes + 2], 1)
    of_points = lengths.topk(num_neighbours, largest=False)
    rows = np.repeat(np.arange(to_ends.shape[1]), num_neighbours)
    neighbours = torch.cat([of_ends.indices, nodes.gather(1, of_points.indices)])
    # A cost of 0 would mean no edge.
    costs = torch.cat([of_ends.values, of_points.values]).square().clamp_min(1e-12)
    return csr_matrix((costs.numpy().ravel(), (rows, neighbours.numpy().ravel())), shape=(to_ends.shape[1],) * 2)


def _nearest_others(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the distances and rows, both (n, k), of the k nearest other points of each of `points` (n, z_dim)."""
    lengths = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    nearest = lengths.topk(k, largest=False)
    return nearest.values, nearest.indices


@lru_cache(4)  # every path through a model's points needs these
def _cached_nearest_others(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the MAX_CACHED_NEIGHBOURS nearest others; by the tensor's identity, so do not change it in place."""
    return _nearest_others(points, max(0, min(MAX_CACHED_NEIGHBOURS, len(points) - 1)))


def _resample(corners: Tensor, steps: int) -> Tensor:
    """Return `steps` evenly spaced points on the polyline through `corners`."""
    corner_distances = F.pad((corners[1:] - corners[:-1]).norm(dim=1).cumsum(0), (1, 0))  # from the start
    distances = torch.linspace(0, 1, steps, dtype=corners.dtype) * corner_distances[-1]
    end = torch.searchsorted(corner_distances, distances, right=True).clamp(1, len(corners) - 1)
    length = (corner_distances[end] - corner_distances[end - 1]).clamp_min(1e-12)
    t = (distances - corner_distances[end - 1]) / length
    return torch.lerp(corners[end - 1], corners[end], t[:, None])


INTERPOLATIONS: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {
    "straight": straight, "spherical": spherical, "neighbours": through_neighbours,
}  # fmt: skip


def available_paths(stored: StoredPoints | None) -> list[str]:
    """Return the interpolations of a model with these stored z-points: neighbours needs some."""
    return [name for name in INTERPOLATIONS if stored or name != "neighbours"]


def interpolate(
    start: Tensor, end: Tensor, steps: int, path: str, latents: LatentStats, stored: StoredPoints | None
) -> Tensor:
    """Return z-points float32 `(steps, z_dim)` from `start` to `end` by `path`, one of INTERPOLATIONS.

    It goes about the mean of the model's `latents`, or through its `stored` z-points. Raises ValueError if the model
    lacks the path.
    """
    if path not in (paths := available_paths(stored)):
        fix = "; neighbours needs stored points: train with points.images above 0" if path in INTERPOLATIONS else ""
        raise ValueError(f"unknown path '{path[:50]}': this model takes {', '.join(paths)}{fix}")
    points = stored.z if stored and path == "neighbours" else latents["mean"][None]
    return INTERPOLATIONS[path](start, end, steps, points)
