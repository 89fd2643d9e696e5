"""Settings of early stops."""

from typing import Self

from pydantic import model_validator

from raysim.config.settings import FiniteFloat, Positive, Settings, Share


class StopSettings(Settings):
    """Conditions that end a run before its last round; null: no condition."""

    accuracy: Share | None = None
    """Accuracy of the global model that ends the run, in (0, 1]: on the validation rows if `data.validation_share`
    gives any, else on the test rows; of tasks whose primary metric is the accuracy."""
    primary: FiniteFloat | None = None
    """Value of the task's primary metric that ends the run when the global model reaches it, from above where the
    metric should go down; on the same rows."""
    simulated_s: Positive | None = None
    """Simulated seconds that end the run, above 0."""
    bytes: Positive | None = None
    """Bytes sent, up and down, that end the run, above 0."""
    energy_j: Positive | None = None
    """Joules spent by the devices that end the run, above 0."""

    @property
    def value(self) -> float | None:
        """Value of the primary metric that ends the run; null: none does."""
        return self.accuracy if self.primary is None else self.primary

    @property
    def given(self) -> str:
        """The setting of that value, with it; empty: there is none."""
        name = "accuracy" if self.primary is None else "primary"
        return "" if self.value is None else f"stop.{name}={self.value:g}"

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.accuracy is not None and self.primary is not None:
            raise ValueError(f"accuracy={self.accuracy:g} and primary={self.primary:g} are both given; allowed: one")
        return self
