"""Executors train clients: in this process, or on Ray actors."""
