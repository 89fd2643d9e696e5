"""Settings of checkpoints."""

from raysim.config.settings import Count, Settings


class CheckpointSettings(Settings):
    """When the server state is saved."""

    every: Count = 1
    """Rounds between two checkpoints, at least 1; the last round is always saved."""
    keep: Count = 2
    """Number of newest checkpoints that stay on disk, at least 1."""
