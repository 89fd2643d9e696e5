"""The base of all settings, and the ranges that numbers, and the forms that paths may have."""

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from raysim.core.errors import shortened
from raysim.core.storage import expansion

LARGEST, SMALLEST = 1e30, 1e-30
"""Largest and smallest size of numbers: some multiplied stay finite in 64 bits, and each in the 32 of training."""
MOST = 2**63 - 1
"""Largest whole number of 64 bits."""


def _not_tiny(value: float) -> float:
    if 0 < value < SMALLEST:
        raise ValueError(f"{value:g} is not allowed; allowed: {SMALLEST:g} to {LARGEST:g}")
    return value


Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False), AfterValidator(_not_tiny)]
FiniteFloat = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False), AfterValidator(_not_tiny)]
"""Simulated seconds of a round: so many of them over all rounds fit into 64 bits."""
Spread = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
"""A standard deviation as a share of the mean."""
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), AfterValidator(_not_tiny)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A number of things; two multiplied fit into 64 bits."""
Seed = Annotated[int, Field(ge=0, le=MOST)]
PathText = Annotated[str, AfterValidator(expansion.expanded)]
"""A path on this machine: `~` and environment variables are replaced by what they stand for."""
UriText = Annotated[str, AfterValidator(expansion.expanded_uri)]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no text converted to numbers, no number beyond 64 bits."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        for name, value in _numbers_in([(field, getattr(self, field)) for field in type(self).model_fields]):
            if isinstance(value, int) and not -MOST <= value <= MOST:
                raise ValueError(f"{name}={shortened(value)} does not fit into 64 bits; allowed: up to 2^63 - 1")
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise ValueError(f"{name}={value:g} is not allowed; allowed: finite numbers up to {LARGEST:g}")
        return self


def _numbers_in(values: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested values with their dotted names; other settings have checked their own."""
    for name, value in values:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, (dict, list, tuple)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            yield from _numbers_in((f"{name}.{key}", child) for key, child in inner)
