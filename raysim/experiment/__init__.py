"""Run one experiment, from settings to summary."""
