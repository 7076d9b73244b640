"""The choice of a search's best decoder: a Pareto front and a stated rule, never the weighted loss alone."""

from collections.abc import Sequence
from dataclasses import dataclass

RULE = (
    "of the models whose validation PSNR is within {slack:g} dB of the best one's, the one whose decoded N(0, 1) "
    "z-points have the lowest Frechet distance to training images in HOG features"
)


@dataclass(frozen=True)
class ScoredModel:
    """A model's name, validation PSNR (dB, higher is better) and Frechet distance of its samples (lower is better)."""

    name: str
    psnr: float
    distance: float


def pareto_front(models: Sequence[ScoredModel]) -> list[ScoredModel]:
    """Return the models that no other model beats in both metrics, by falling PSNR."""
    front: list[ScoredModel] = []
    for model in sorted(models, key=lambda m: (-m.psnr, m.distance)):
        if not front or model.distance < front[-1].distance:
            front.append(model)
    return front


def choose_best(models: Sequence[ScoredModel], slack: float) -> ScoredModel:
    """Return the model that RULE selects, always on the Pareto front. Raises ValueError if there is no model."""
    if not models:
        raise ValueError("no model to choose from: every trial failed")
    front = pareto_front(models)
    return min((m for m in front if m.psnr >= front[0].psnr - slack), key=lambda m: m.distance)
