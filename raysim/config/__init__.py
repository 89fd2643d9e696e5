"""The experiment file: typed settings, checks, overrides."""
