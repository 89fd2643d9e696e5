"""One experiment from settings to summary."""
