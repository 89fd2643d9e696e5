"""Errors, seeds, logging and storage for all other packages."""
