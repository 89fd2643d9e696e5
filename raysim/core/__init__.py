"""Errors, seeds, logging, storage: what every other package builds on."""
