"""Settings of diagnostics."""

from raysim.config.settings import Count, Settings


class DiagnosticsSettings(Settings):
    """When a method's own predictions are held against what happens."""

    every: Count | None = None
    """Rounds between two diagnoses, at least 1; null = never. They cost time, and change nothing."""
