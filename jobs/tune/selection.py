"""Which model of a search is the best decoder: a Pareto front and a stated rule, never the weighted loss alone."""

from collections.abc import Sequence
from dataclasses import dataclass

RULE = (
    "of the models whose validation PSNR is within {slack:g} dB of the best one's, the one whose decoded N(0, 1) "
    "z-points have the lowest Frechet distance to training images in HOG features"
)


@dataclass(frozen=True)
class Scored:
    """A model's name with its validation PSNR (dB, more is better) and sample distance (less is better)."""

    name: str
    psnr: float
    distance: float


def pareto_front(models: Sequence[Scored]) -> list[Scored]:
    """The models that no other one beats in both figures, best PSNR first."""
    front: list[Scored] = []
    for model in sorted(models, key=lambda m: (-m.psnr, m.distance)):
        if not front or model.distance < front[-1].distance:
            front.append(model)
    return front


def choose_best(models: Sequence[Scored], slack: float) -> Scored:
    """The model that RULE names; always on the Pareto front. Raises ValueError when there is none."""
    if not models:
        raise ValueError("no model to choose from: every trial failed")
    front = pareto_front(models)
    return min((m for m in front if m.psnr >= front[0].psnr - slack), key=lambda m: m.distance)
