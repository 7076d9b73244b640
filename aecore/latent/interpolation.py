"""Ways through the latent space: from one z-point to another, and along the directions in which images change.

A path is called `f(start, end, steps, points)` and gives z-points float32 `(steps, z_dim)` from `start` to `end`, both
`(z_dim,)`, at even distances; `points` (n, z_dim) are z-points of real images. Add one by writing a function and naming
it in INTERPOLATIONS.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10


def straight(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """The straight line."""
    return torch.lerp(start, end, torch.linspace(0, 1, steps)[:, None])


def spherical(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """Along the great circle about the mean of `points`, the radius changing evenly (Shoemake 1985; White 2016)."""
    centre, t = points.mean(0), torch.linspace(0, 1, steps)[:, None]
    a, b = start - centre, end - centre
    radius = torch.lerp(a.norm(), b.norm(), t)
    cosine = F.cosine_similarity(a, b, dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if angle.sin() < 1e-4:  # no great circle of its own
        return straight(start, end, steps, points)
    turned = torch.sin((1 - t) * angle) * F.normalize(a, dim=0) + torch.sin(t * angle) * F.normalize(b, dim=0)
    return centre + radius * turned / torch.sin(angle)


def through_neighbours(start: Tensor, end: Tensor, steps: int, points: Tensor) -> Tensor:
    """From neighbour to neighbour among `points`: the shortest way when a step costs its length squared.

    The graph joins each point to its NEIGHBOURS nearest ones, to more where that leaves start and end apart. Squared
    lengths make many short steps through dense regions cheaper than a leap (Bijral et al. 2011, p = 2).
    """
    from scipy.sparse.csgraph import dijkstra

    nodes = torch.cat([start[None], end[None], points])
    lengths = torch.cdist(nodes, nodes).fill_diagonal_(torch.inf)
    count = min(NEIGHBOURS, len(nodes) - 1)
    while True:
        graph = _neighbour_graph(lengths, count)
        costs, before = dijkstra(graph, directed=False, indices=0, return_predecessors=True)
        if np.isfinite(costs[1]):
            break
        count = min(2 * count, len(nodes) - 1)
    way = [1]
    while way[-1] != 0:
        way.append(int(before[way[-1]]))
    return _evenly(nodes[way[::-1]], steps)


def _neighbour_graph(lengths: Tensor, count: int):
    from scipy.sparse import csr_matrix

    near = lengths.topk(count, largest=False)
    rows = np.repeat(np.arange(len(lengths)), count)
    costs = near.values.square().clamp_min(1e-12)  # a cost of 0 would mean no edge
    return csr_matrix((costs.numpy().ravel(), (rows, near.indices.numpy().ravel())), shape=lengths.shape)


def _evenly(corners: Tensor, steps: int) -> Tensor:
    """`steps` points at even distances along the line through `corners`."""
    along = F.pad((corners[1:] - corners[:-1]).norm(dim=1).cumsum(0), (1, 0))
    wanted = torch.linspace(0, 1, steps) * along[-1]
    last = torch.searchsorted(along, wanted, right=True).clamp(1, len(along) - 1)
    share = (wanted - along[last - 1]) / (along[last] - along[last - 1]).clamp_min(1e-12)
    return torch.lerp(corners[last - 1], corners[last], share[:, None])


INTERPOLATIONS: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {
    "straight": straight, "spherical": spherical, "neighbours": through_neighbours,
}  # fmt: skip


def attribute_direction(z: Tensor, values: Tensor) -> Tensor:
    """How z-points `(n, z_dim)` move as an attribute with `values` (n,) grows by 1: each component's regression slope.

    For an attribute of 0 and 1 this is the difference of the two groups' means (Larsen 2016). Zeros where all images
    have the same value.
    """
    values = values.to(z.dtype)
    values = values - values.mean()
    return values @ (z - z.mean(0)) / values.square().sum().clamp_min(1e-12)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The variances `(z_dim,)`, greatest first, and the unit axes `(z_dim, z_dim)`, a row each."""
    variances, axes = torch.linalg.eigh(covariance.double())
    return variances.flip(0).clamp_min(0).float(), axes.T.flip(0).float()
