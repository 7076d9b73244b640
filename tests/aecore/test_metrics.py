import pytest
import torch

from aecore.metrics import psnr, sliced_wasserstein
from aecore.ranking import Scored, choose_best, pareto_front


def blobs(n, seed):
    """Images with structure: one bright disc at a random place on a random shade."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.rand(n, 2, 1, 1, generator=generator) * 24 + 4
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (((y - at[:, :1]) ** 2 + (x - at[:, 1:]) ** 2) < 30).float()
    shade = torch.rand(n, 3, 1, 1, generator=generator) * 0.5
    return (shade + disc * 0.5).clamp(0, 1)


def test_sliced_wasserstein_orders_sets_as_an_eye_does():
    real, more = blobs(256, 0), blobs(256, 1)
    scores = {
        "itself": sliced_wasserstein(real, real),
        "more of it": sliced_wasserstein(more, real),
        "blurred": sliced_wasserstein(torch.nn.functional.avg_pool2d(more, 5, 1, 2), real),
        "one repeated": sliced_wasserstein(more[:1].expand(256, -1, -1, -1), real),
        "gray": sliced_wasserstein(torch.full_like(real, 0.4), real),
        "noise": sliced_wasserstein(torch.rand_like(real), real),
    }
    assert scores["itself"] < 1e-3
    assert scores["more of it"] < 0.5 * min(scores[k] for k in ("blurred", "one repeated", "gray", "noise"))
    assert scores["gray"] > scores["blurred"]


def test_psnr():
    assert psnr(torch.tensor([1.0, 0.01])).tolist() == pytest.approx([0.0, 20.0])


def test_the_rule_takes_the_front_within_the_slack():
    models = [
        Scored("sharp", 25, 90),
        Scored("both", 23, 40),
        Scored("worse", 22, 60),
        Scored("blurred", 18, 10),
    ]
    assert [m.name for m in pareto_front(models)] == ["sharp", "both", "blurred"]
    assert choose_best(models, 3).name == "both"
    assert choose_best(models, 0).name == "sharp"
    assert choose_best(models, 9).name == "blurred"
    with pytest.raises(ValueError, match="no model"):
        choose_best([], 3)
