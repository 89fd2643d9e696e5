"""CPU, memory, disk, network and GPU of the machine that runs the command, as MLflow's `system/` metrics."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

LAST_WORDS_S = 0.5
"""How long the end of a run waits for the last of them."""


@contextmanager
def watched(uri: str, run_id: str) -> Iterator[None]:
    """Have MLflow's own monitor watch this machine for as long as the context lasts; nothing of it fails a run.

    Steps count its samples, one in 10 seconds and one at the end; a run that goes on counts on.
    """
    monitors: list[Any] = []

    def begin() -> None:
        with suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # a lost sample is no error
            monitor: Any = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
            monitors.append(monitor)
            monitor.start()

    def finish() -> None:
        beginning.join()
        for monitor in monitors:
            with suppress(Exception):
                monitor.finish()
                monitor.publish_metrics(monitor.aggregate_metrics())  # the sample begun: a short run's only one
                monitor.mlflow_logger.flush()

    beginning = Thread(target=begin, name="raysim-system-metrics", daemon=True)
    beginning.start()
    try:
        yield
    finally:
        ending = Thread(target=finish, daemon=True)
        ending.start()
        ending.join(LAST_WORDS_S)
