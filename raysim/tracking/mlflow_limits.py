"""Limit how long MLflow waits for a server that does not answer."""

import logging
import os

LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""With MLflow's own, 7 retries of 120 s, an unreachable server is noticed after minutes; with these within one."""


def limit_waits() -> None:
    """Set the limits in the environment, which MLflow reads at each call, except those that the user has set.

    Commands and tracked runs call this; a program that only reads runs keeps its own limits.
    """
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a lost server is reported once, by raysim
