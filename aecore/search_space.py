"""The values of one recipe key in a search: a list, `int(low, high)`, `uniform(low, high)` or `log(low, high)`."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

RANGE = re.compile(r"\s*(int|uniform|log)\(\s*([^\s,]+)\s*,\s*([^\s,]+)\s*\)\s*")
FORMS = "a list, int(low, high), uniform(low, high) or log(low, high)"
DIGITS = 3  # significant digits of a value from a continuous range: a point's command stays short


@dataclass(frozen=True)
class Choices:
    """A finite set of values; numbers are in ascending order, and the search takes neighbours as alike."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        return len(self.values)

    @property
    def ordered(self) -> bool:
        return all(_is_number(value) for value in self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that the recipe must accept."""
        return self.values

    def at(self, fraction: float) -> Any:
        """Return the value at `fraction`, 0 to 1, of the way through the values."""
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]

    def nearest(self, value: Any) -> Any:
        """Return the choice that equals `value`, 1 for 1.0. Raises ValueError if there is none."""
        if value not in self.values:
            raise ValueError(f"it takes one of {list(self.values)}")
        return self.values[self.values.index(value)]


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`: whole ones (int), or any, spaced evenly (uniform) or by logarithm (log)."""

    kind: str
    low: float
    high: float

    @property
    def size(self) -> float:
        return self.high - self.low + 1 if self.kind == "int" else math.inf if self.low < self.high else 1

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that the recipe must accept."""
        return (self.low, self.high)

    def at(self, fraction: float) -> Any:
        """Return the value at `fraction`, 0 to 1, of the way from low to high, rounded as `nearest` does."""
        if self.kind == "int":
            return min(int(self.low + fraction * (self.high - self.low + 1)), int(self.high))
        if self.kind == "log":
            return self.nearest(math.exp(math.log(self.low) + fraction * math.log(self.high / self.low)))
        return self.nearest(self.low + fraction * (self.high - self.low))

    def nearest(self, value: Any) -> Any:
        """Return `value` with three significant digits, a whole one if the range is `int`, within the range.

        Raises ValueError if it is outside.
        """
        if not _is_number(value) or not self.low - 1e-9 * abs(self.low) <= value <= self.high + 1e-9 * abs(self.high):
            raise ValueError(f"it takes {self}")
        if self.kind == "int":
            return round(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        return f"{self.kind}({self.low:g}, {self.high:g})"


Dimension = Choices | Range
Point = dict[str, Any]  # values by recipe key


def parse_dimension(text: Any) -> Dimension:
    """Return the values that a recipe names for one key. Raises ValueError for any other form."""
    if isinstance(text, list | tuple):
        values = sorted(text) if text and all(_is_number(value) for value in text) else list(text)
        if not values or any(values.count(value) > 1 for value in values):
            raise ValueError("a list needs at least one value, each once")
        return Choices(tuple(values))
    if not isinstance(text, str) or not (match := RANGE.fullmatch(text)):
        raise ValueError(f"it takes {FORMS}")
    kind = match[1]
    try:
        low, high = ((int if kind == "int" else float)(number) for number in match.groups()[1:])
    except ValueError:
        raise ValueError(f"{kind}(low, high) takes {'whole ' * (kind == 'int')}numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{kind}(low, high) takes low <= high")
    if kind == "log" and low <= 0:
        raise ValueError("log(low, high) takes low > 0")
    return Range(kind, low, high)


def parse_space(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """Return the values of each searched key."""
    return {key: parse_dimension(text) for key, text in space.items()}


def grid_size(space: Mapping[str, Dimension]) -> float:
    """Return the number of points of the space, inf if a range is continuous."""
    return math.prod(dimension.size for dimension in space.values())


def is_grid(space: Mapping[str, Dimension], trials: int) -> bool:
    """Return True if all dimensions are lists with no more points in total than `trials`."""
    return all(isinstance(dimension, Choices) for dimension in space.values()) and grid_size(space) <= trials


def grid(space: Mapping[str, Dimension]) -> Iterator[Point]:
    """Yield each combination of the dimensions' ends: of a space of lists each of its points once."""
    return (dict(zip(space, values, strict=True)) for values in product(*(d.ends for d in space.values())))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
