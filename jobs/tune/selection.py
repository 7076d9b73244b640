"""The choice of a search's best decoder: a Pareto front and a stated rule, never the weighted loss alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aecore.config import sampler_distances

RULE = (
    "of the models with active units whose validation PSNR is within {slack:g} dB of the best one's, the one whose "
    "decoded z-points {sampler} have the lowest Frechet distance to training images in HOG features"
)
SEVERAL_SEEDS = "; points with several seeds are ranked by their mean, before all others"
RULE_SAMPLERS = {"best": "of its best stored sampler", "normal": "from N(0, 1)"}


@dataclass(frozen=True)
class ScoredModel:
    """A model's name, validation PSNR (dB, higher is better) and Frechet distance of its samples (lower is better).

    `sampler` is the one that the distance is of. A model that is not `alive` has no active units: its decoder ignores
    z. The mean of several seeds has their number as `num_seeds`.
    """

    name: str
    psnr: float
    distance: float
    sampler: str = "normal"
    alive: bool = True
    num_seeds: int = 1


def score(name: str, metrics: Mapping[str, float], sampler: str) -> ScoredModel:
    """Return the score of a run by the metrics of a judged epoch; `sampler` is normal, or best for the lowest distance.

    The best one is among the samplers that were judged then.

    Raises KeyError if the samples were not judged at that epoch.
    """
    distances = sampler_distances(metrics)
    if sampler == "normal" or not distances:
        distances = {"normal": metrics["hog_frechet_normal"]}
    best = min(distances, key=distances.__getitem__)
    return ScoredModel(name, metrics["valid_psnr"], distances[best], best, metrics.get("valid_active_units", 1) > 0)


def describe_rule(slack: float, sampler: str, several_seeds: bool = False) -> str:
    """Return the rule in words, for points that each have one seed or of which some have `several_seeds`."""
    return RULE.format(slack=slack, sampler=RULE_SAMPLERS[sampler]) + SEVERAL_SEEDS * several_seeds


def pareto_front(models: Sequence[ScoredModel]) -> list[ScoredModel]:
    """Return the models with active units that no other one beats in both metrics, by falling PSNR."""
    front: list[ScoredModel] = []
    for model in sorted((m for m in models if m.alive), key=lambda m: (-m.psnr, m.distance)):
        if not front or model.distance < front[-1].distance:
            front.append(model)
    return front


def within_slack(models: Sequence[ScoredModel], slack: float) -> list[ScoredModel]:
    """Return the models with active units whose PSNR is within `slack` of the best one's, by rising distance."""
    alive = [model for model in models if model.alive]
    min_psnr = max((model.psnr for model in alive), default=0.0) - slack
    return sorted((m for m in alive if m.psnr >= min_psnr), key=lambda m: m.distance)


def rank_by_rule(models: Sequence[ScoredModel], slack: float) -> list[ScoredModel]:
    """Return the models of the Pareto front that the rule admits, the best one first."""
    return pareto_front(within_slack(models, slack))[::-1]


def choose_best(models: Sequence[ScoredModel], slack: float) -> ScoredModel:
    """Return the model that the rule selects, always on the Pareto front. Raises ValueError if no model is alive."""
    if not (ranked := rank_by_rule(models, slack)):
        raise ValueError("no model to choose from: every trial failed, or ended without active units")
    return ranked[0]


def mean_score(models: Sequence[ScoredModel]) -> ScoredModel:
    """Return the mean of the scores of one point's seeds, under the name of the one with the lowest distance."""
    best = min(models, key=lambda model: model.distance)
    psnr, distance = (float(np.mean([getattr(model, name) for model in models])) for name in ("psnr", "distance"))
    return ScoredModel(best.name, psnr, distance, best.sampler, all(model.alive for model in models), len(models))


def describe_noise(points: Sequence[Sequence[ScoredModel]], slack: float) -> str:
    """Return if the best point's lead is more than the noise between seeds; `points` are the scores of their seeds.

    The lead in mean distance over the next point within the rule's slack counts as noise below two standard errors of
    the difference, from the pooled variance of the points with several seeds. The next point need not be on the Pareto
    front: noise may have put it behind.
    """
    several = [seeds for seeds in points if len(seeds) > 1]
    if not several:
        return "one seed each: the choice may lie within the noise between seeds; search.replicates=3 measures it"
    if len(points) == 1:
        return ""
    if len(several) == 1:
        return "only one point has several seeds: its lead over the others may lie within the noise between seeds"
    distances = [np.array([model.distance for model in seeds]) for seeds in several]
    variance = sum(((d - d.mean()) ** 2).sum() for d in distances) / sum(len(d) - 1 for d in distances)
    ranked = within_slack([mean_score(seeds) for seeds in several], slack)
    if len(ranked) < 2:
        return ""
    lead = ranked[1].distance - ranked[0].distance
    error = float(np.sqrt(variance * sum(1 / model.num_seeds for model in ranked[:2])))
    if lead >= 2 * error:
        return f"the choice is above noise: it leads by {lead:.2f} in mean distance, at a standard error of {error:.2f}"
    return (
        f"the choice lies within noise: {ranked[0].name} leads {ranked[1].name} by {lead:.2f} in mean distance, at a "
        f"standard error of {error:.2f}"
    )


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that (psnr, distance) `points` dominate, up to `reference` = (lowest psnr, highest distance)."""
    area, worst = 0.0, reference[1]
    for psnr, distance in sorted(points, key=lambda point: (-point[0], point[1])):
        if psnr > reference[0] and distance < worst:
            area += (psnr - reference[0]) * (worst - distance)
            worst = distance
    return area
