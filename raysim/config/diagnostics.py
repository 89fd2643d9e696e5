"""Settings of diagnostics."""

from raysim.config.settings import Count, Settings


class DiagnosticsSettings(Settings):
    """When a method's predictions are compared with measured changes of the loss."""

    every: Count | None = None
    """Rounds between two diagnoses, at least 1; null: never. They cost time and change no result."""
