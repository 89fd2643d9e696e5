"""Settings of early stops."""

from raysim.config.settings import Positive, Settings, Share


class StopSettings(Settings):
    """Conditions that end a run before its last round; null: no condition."""

    accuracy: Share | None = None
    """Accuracy of the global model that ends the run, in (0, 1]: on the validation rows if `data.validation_share`
    gives any, else on the test rows."""
    simulated_s: Positive | None = None
    """Simulated seconds that end the run, above 0."""
    bytes: Positive | None = None
    """Bytes sent, up and down, that end the run, above 0."""
    energy_j: Positive | None = None
    """Joules spent by the devices that end the run, above 0."""
