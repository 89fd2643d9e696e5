"""Draw the configurations of a sweep from its search space."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raysim.config.settings import Settings
from raysim.core import seeding

DIGITS = 4
"""Significant digits of drawn numbers, which keep them readable."""
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Domain(Settings):
    """The values of one setting: exactly one of these."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values that are all tried, each with every value of the other grids."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values from which one is drawn."""
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

    def drawn(self, seed: int, name: str, index: int) -> Any:
        """Return the value that a configuration draws; it depends on nothing else that is searched.

        Args:
            seed: The seed of all draws.
            name: The setting, by its dotted name.
            index: The index of the configuration.
        """
        rng = seeding.generator(seed, f"sweep {name}", index)
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
    """Return a number with few significant digits.

    >>> rounded(0.0123456)
    0.01235
    """
    return float(f"{value:.{DIGITS}g}")


def configurations(search: Mapping[str, Domain], samples: int, seed: int) -> list[dict[str, Any]]:
    """Return configurations, `samples` for every point of the grids, without repeated ones.

    Args:
        search: The values of each setting, by its dotted name.
        samples: The number of draws for each point of the grids.
        seed: The seed of all draws.
    """
    grids = {name: domain.grid for name, domain in search.items() if domain.grid is not None}
    points = [
        dict(zip(grids, point, strict=True)) for _ in range(samples) for point in itertools.product(*grids.values())
    ]
    found = [
        {name: point[name] if name in point else domain.drawn(seed, name, index) for name, domain in search.items()}
        for index, point in enumerate(points)
    ]
    return _each_once(found)


def _each_once(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_text = {repr(each): each for each in reversed(found)}
    return [each for each in found if by_text.pop(repr(each), None) is not None]
