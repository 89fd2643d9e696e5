"""The search space of a sweep: how each setting is drawn, and the configurations that come out."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raysim.config.settings import Settings
from raysim.core import seeding

DIGITS = 4
"""Digits that a drawn number keeps, so that it can be read and typed."""
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Domain(Settings):
    """Where the values of one setting come from: exactly one of these."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values that are all tried, with every value of the other grids."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values of which one is drawn."""
    uniform: Pair | None = None
    """Lowest and highest number; all between are equally likely."""
    loguniform: Pair | None = None
    """Lowest and highest number, above 0; all magnitudes between are equally likely."""
    randint: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest whole number, both included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = sorted(self.model_fields_set)
        if len(given) != 1:
            raise ValueError(
                f"{', '.join(given) or 'nothing'} is given; allowed: one of {', '.join(type(self).model_fields)}"
            )
        bounds = self.uniform or self.loguniform or self.randint
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]}={bounds} is not allowed; allowed: [lowest, highest], lowest below highest")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform={self.loguniform} is not allowed; allowed: numbers above 0")
        return self

    def drawn(self, seed: int, name: str, place: int) -> Any:
        """Return the value that a configuration draws; that of its place among all, whatever else is searched."""
        rng = seeding.generator(seed, f"sweep {name}", place)
        if self.choice is not None:
            return self.choice[int(rng.integers(len(self.choice)))]
        if self.randint is not None:
            return int(rng.integers(self.randint[0], self.randint[1], endpoint=True))
        if self.loguniform is not None:
            lowest, highest = map(math.log, self.loguniform)
            return rounded(math.exp(rng.uniform(lowest, highest)))
        lowest, highest = self.uniform or (0.0, 1.0)
        return rounded(rng.uniform(lowest, highest))


def rounded(value: float) -> float:
    """Return a number with few digits.

    >>> rounded(0.0123456)
    0.01235
    """
    return float(f"{value:.{DIGITS}g}")


def configurations(search: Mapping[str, Domain], samples: int, seed: int) -> list[dict[str, Any]]:
    """Return values for all settings that are searched: every point of the grids, `samples` times; each once.

    Args:
        search: Where values come from, by dotted name of the setting.
        samples: How often what is drawn is drawn for each point of the grids.
        seed: Of the draws.
    """
    grids = {name: domain.grid for name, domain in search.items() if domain.grid is not None}
    points = [
        dict(zip(grids, point, strict=True)) for _ in range(samples) for point in itertools.product(*grids.values())
    ]
    found = [
        {name: point[name] if name in point else domain.drawn(seed, name, place) for name, domain in search.items()}
        for place, point in enumerate(points)
    ]
    return _each_once(found)


def _each_once(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for place, each in enumerate(found) if each not in found[:place]]
