"""Settings of the clock: when a round ends in simulated time."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raysim.config.settings import Count, Seconds, Settings


class ClockSettings(Settings):
    """When a round ends in simulated time, and which updates count."""

    mode: Literal["sync", "deadline", "over-selection", "async"] = "sync"
    """`sync` (wait for all clients), `deadline` (wait for `deadline_s`), `over-selection` (select more clients, use
    the first updates) or `async` (FedBuff: aggregate whenever a buffer is full)."""
    deadline_s: Seconds | None = None
    """Seconds after which a round ends, above 0. For `mode: deadline`."""
    accept_partial: bool | None = None
    """Whether late clients send the epochs that they have completed by then; default false. For `mode: deadline`."""
    over_selection: Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)] | None = None
    """Selected clients over used updates, at least 1; default 1.3. For `mode: over-selection`."""
    buffer_size: Count | None = None
    """Number of updates in one aggregation, at least 1; default `selection.clients_per_round`. For `mode: async`."""
    concurrency: Count | None = None
    """Number of clients that train at the same time, at least 1; default `selection.clients_per_round`. For `mode:
    async`."""
    staleness_exponent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """Exponent a of the weight (1 + s)^-a of an update that is s versions old, in [0, 100]; default 0.5. For
    `mode: async`."""
    server_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Seconds that the server needs for a round, at least 0."""
    empty_round_s: Seconds | None = None
    """Seconds of a round without clients, above 0; default 60. With `mode: deadline` it is the deadline."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        readers = {
            "deadline": ("deadline_s", "accept_partial"),
            "over-selection": ("over_selection",),
            "async": ("buffer_size", "concurrency", "staleness_exponent"),
        }
        for mode, names in readers.items():
            for name in names:
                if getattr(self, name) is not None and self.mode != mode:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no effect with mode={self.mode!r}; it belongs to {mode!r}"
                    )
        if self.mode == "deadline" and self.empty_round_s is not None:
            raise ValueError(
                f"empty_round_s={self.empty_round_s:g} has no effect with mode='deadline', where deadline_s passes"
            )
        if self.mode == "deadline" and self.deadline_s is None:
            raise ValueError("deadline_s is missing; mode='deadline' needs it, above 0")
        return self
