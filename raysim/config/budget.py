"""Settings of budgets: how much of the model a client trains."""

from typing import Literal, Self

from pydantic import model_validator

from raysim.config.settings import Count, Positive, Settings


class BudgetSettings(Settings):
    """How much of the model a client trains. Methods that train the whole model ignore budgets."""

    rule: Literal["tier", "solved"] = "tier"
    """`tier` (the device's `keep_ratio`) or `solved` (the widest submodel, up to `keep_ratio`, that meets the
    deadline and fits the device's memory and data cap)."""
    deadline_s: Positive | None = None
    """Seconds within which download, training and upload must be predicted to end, above 0; null: `clock.deadline_s`
    if set, else no limit. For `rule: solved`."""
    steps: Count | None = None
    """Number of steps on the ladder of keep ratios, at least 1; default 32. For `rule: solved`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("deadline_s", "steps"):
            if getattr(self, name) is not None and self.rule != "solved":
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with rule='tier'; it belongs to 'solved'"
                )
        return self
