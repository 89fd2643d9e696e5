"""Settings of the server's optimizer."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raysim.config.settings import Positive, Settings


class ServerSettings(Settings):
    """How the server applies the aggregated update; entries that no client trained do not change."""

    optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    """`sgd` (with rate 1: the aggregate itself), `momentum`, `adam` or `yogi`."""
    learning_rate: Positive = 1.0
    """Step size, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum, or first beta of `adam` and `yogi`, in [0, 1); default 0.9."""
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Second beta of `adam` and `yogi`, in [0, 1); default 0.99."""
    epsilon: Positive | None = None
    """Adaptivity of `adam` and `yogi`, above 0; default 0.001."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        readers = {"momentum": ("momentum", "adam", "yogi"), "beta2": ("adam", "yogi"), "epsilon": ("adam", "yogi")}
        for name, optimizers in readers.items():
            if getattr(self, name) is not None and self.optimizer not in optimizers:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with optimizer={self.optimizer!r}; "
                    f"it belongs to {', '.join(optimizers)}"
                )
        return self
