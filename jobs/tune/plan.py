"""The points of a search, one after the other: a grid, or a space-filling start and then Optuna's Gaussian process."""

import json
import warnings
from collections.abc import Sequence
from itertools import islice, product
from typing import Any

from aecore.search_space import Choices, Dimension, Point, Range, grid, grid_size, is_grid

Values = tuple[float, float]  # PSNR, higher is better, and distance, lower is better
SOBOL_POINTS = 256  # drawn at once
MAX_LISTED = 10_000  # points of a finite space that are searched for one that has not been tried


def quiet_optuna() -> None:
    """Silence Optuna's log lines of each trial and its warnings of experimental parts."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna")


class PointPlan:
    """Chooses a search's next point from the results of the earlier ones; no point is chosen twice.

    A space of lists alone with no more points than `trials` is a grid. In any other the plan begins with `first` and
    fills up to 2 x keys + 2 points from a Sobol sequence (Sobol 1967). Then Optuna's GPSampler maximises the expected
    hypervolume improvement of both objectives, and of running trials takes the likely results into account
    (Daulton 2020); tests/benchmarks/samplers.py compares it.
    """

    def __init__(self, space: dict[str, Dimension], first: Sequence[Point], trials: int, seed: int) -> None:
        import optuna

        quiet_optuna()
        self.space = space
        self.searched = {key: dimension for key, dimension in space.items() if dimension.size > 1}
        self.is_grid = is_grid(space, trials)
        self.num_start = 2 * len(self.searched) + 2
        self.queue = [*map(self._nearest, first), *(grid(space) if self.is_grid else [])]
        self.chosen: set[str] = set()  # with the points that `add` takes
        self._running: dict[str, Any] = {}  # Optuna's trials by point
        self._num_results = 0
        self._fractions = self._draw_sobol(seed)
        self._distributions = {key: distribution(dimension) for key, dimension in self.searched.items()}
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def next(self) -> Point | None:
        """Return a point that has not been chosen yet, None if there is none left."""
        while self.queue:
            if (point := self.queue.pop(0)) and self._choose(point):
                return point
        if self.is_grid or len(self.chosen) >= grid_size(self.space):
            return None
        if self._num_results >= self.num_start and (point := self._ask()):
            return point
        for fractions in islice(self._fractions, SOBOL_POINTS):
            if self._choose(point := self._at(fractions)):
                return point
        return next((point for point in self._listed() if self._choose(point)), None)

    def add(self, point: Point, values: Values | None) -> None:
        """Take the result of a point that this plan did not choose, of an earlier command; None if it has none."""
        import optuna

        self.chosen.add(self._key(point))
        if values is not None:
            params = self._params(point)
            trial = optuna.trial.create_trial(params=params, distributions=self._distributions, values=values)
            self._study.add_trial(trial)
            self._num_results += 1

    def tell(self, point: Point, values: Values | None) -> None:
        """Take the result of a chosen point, None if it has none."""
        import optuna

        if (trial := self._running.pop(self._key(point), None)) is None:
            return self.add(point, values)
        if values is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, values)
            self._num_results += 1

    def _choose(self, point: Point) -> bool:
        """Open a trial of `point`, unless the point has been chosen before."""
        if self._key(point) in self.chosen:
            return False
        self.chosen.add(self._key(point))
        self._study.enqueue_trial(self._params(point))
        self._running[self._key(point)] = self._study.ask(self._distributions)
        return True

    def _ask(self) -> Point | None:
        trial = self._study.ask(self._distributions)
        point = {key: _value(dimension, trial.params[key]) for key, dimension in self.searched.items()}
        point |= {key: dimension.ends[0] for key, dimension in self.space.items() if key not in point}
        point = {key: point[key] for key in self.space}
        if self._key(point) in self.chosen:
            import optuna

            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        self.chosen.add(self._key(point))
        self._running[self._key(point)] = trial
        return point

    def _nearest(self, point: Point) -> Point:
        """Return the point in the space's own values: 1.0 and 1 would count as two."""
        return {key: dimension.nearest(point[key]) for key, dimension in self.space.items()}

    def _key(self, point: Point) -> str:
        return json.dumps(self._nearest(point), sort_keys=True)

    def _params(self, point: Point) -> dict[str, Any]:
        return {key: to_param(dimension, point[key]) for key, dimension in self.searched.items()}

    def _at(self, fractions: Sequence[float]) -> Point:
        return {key: dimension.at(fractions[i]) for i, (key, dimension) in enumerate(self.space.items())}

    def _draw_sobol(self, seed: int) -> Any:
        from scipy.stats import qmc

        sobol = qmc.Sobol(len(self.space), rng=seed)
        while True:
            yield from sobol.random(SOBOL_POINTS).tolist()

    def _listed(self) -> Any:
        """Yield the points of a small finite space."""
        if grid_size(self.space) <= MAX_LISTED:
            values = [d.ends if isinstance(d, Choices) else range(int(d.low), int(d.high) + 1)
                      for d in self.space.values()]  # fmt: skip
            yield from (dict(zip(self.space, point, strict=True)) for point in product(*values))


def distribution(dimension: Dimension) -> Any:
    """Return Optuna's distribution: of ordered choices their index, so that neighbours are alike."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Range):
        if dimension.kind == "int":
            return IntDistribution(int(dimension.low), int(dimension.high))
        return FloatDistribution(dimension.low, dimension.high, log=dimension.kind == "log")
    last = len(dimension.values) - 1
    return IntDistribution(0, last) if dimension.ordered else CategoricalDistribution(range(last + 1))


def to_param(dimension: Dimension, value: Any) -> Any:
    """Return the value as Optuna's distribution takes it."""
    return value if isinstance(dimension, Range) else dimension.values.index(value)


def _value(dimension: Dimension, param: Any) -> Any:
    return dimension.nearest(param) if isinstance(dimension, Range) else dimension.values[param]
