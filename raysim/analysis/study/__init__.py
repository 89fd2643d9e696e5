"""Run several methods over one split and several seeds."""
