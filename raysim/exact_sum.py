"""Weighted sums of tensors that are exact, so that neither order nor grouping of the terms matters."""

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.arrays import as_tensors
from raysim.pruning.submodel import Cut, add
from raysim.types import Params

SCALE_BITS = 32
"""Fixed point: every term is rounded once to a multiple of 2^-32, then added as a 64-bit integer."""

LIMIT = 2.0 ** (62 - SCALE_BITS)
"""Largest sum of magnitudes that surely fits."""


class ExactSum:
    """Sums of weight x value by state-dict key, in the full model's coordinates.

    Attributes:
        totals: 64-bit fixed-point sums by state-dict key.
        magnitude: Upper bound of the largest absolute sum.
    """

    def __init__(self, totals: Params, magnitude: float = 0.0) -> None:
        self.totals, self.magnitude = totals, magnitude

    @staticmethod
    def zeros_like(params: Params) -> "ExactSum":
        """Return an empty sum for tensors of these shapes."""
        return ExactSum({key: torch.zeros(tensor.shape, dtype=torch.int64) for key, tensor in params.items()})

    def add(self, values: Params, cut: Cut, weight: float) -> None:
        """Add a submodel's values times a weight.

        Raises:
            OverflowError: If a value is not finite or the sum could leave the 64-bit range.
        """
        terms = {key: value.double() * weight for key, value in values.items()}
        largest = float(torch.stack([term.abs().max() for term in terms.values()]).max())  # NaN if any is
        self._grow(largest)
        for key, term in terms.items():
            fixed = term.mul_(2.0**SCALE_BITS).round_().to(torch.int64)
            if key in cut:
                add(self.totals[key], cut[key], fixed)
            else:
                self.totals[key] += fixed

    def merge(self, other: "ExactSum") -> None:
        """Add another sum of the same keys."""
        self._grow(other.magnitude)
        for key, total in other.totals.items():
            self.totals[key] += total

    def _grow(self, by: float) -> None:
        if not self.magnitude + by < LIMIT:
            raise OverflowError(
                f"weighted updates of magnitude {by:.3g} cannot be summed exactly (limit {LIMIT:.3g})"
            )
        self.magnitude += by

    def value(self, key: str) -> torch.Tensor:
        """Return one sum in float64."""
        return self.totals[key].double() * 2.0**-SCALE_BITS

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as NumPy arrays, which Ray moves without a copy."""
        return _from_arrays, ({key: total.numpy() for key, total in self.totals.items()}, self.magnitude)


def _from_arrays(totals: dict[str, NDArray[np.int64]], magnitude: float) -> ExactSum:
    return ExactSum(as_tensors(totals), magnitude)
