"""Settings of early stops."""

from raysim.config.settings import Positive, Settings, Share


class StopSettings(Settings):
    """What ends a run before its last round; null = nothing."""

    accuracy: Share | None = None
    """Global test accuracy to reach, in (0, 1]."""
    simulated_s: Positive | None = None
    """Simulated seconds to spend, above 0."""
    bytes: Positive | None = None
    """Bytes to move, up and down, above 0."""
    energy_j: Positive | None = None
    """Joules the devices spend, above 0."""
