"""Watch CPU, memory, disk, network and GPU of this machine, as MLflow's `system/` metrics."""

import logging
from contextlib import suppress
from threading import Event, Thread
from typing import Any

LAST_SAMPLE_S = 0.5
"""Seconds that the end of a run waits at most for the last sample."""


class SystemMetrics:
    """Runs MLflow's own monitor in a background thread; its errors never fail a run.

    Steps count the samples, one in 10 seconds and one at the end; a resumed run continues the count. MLflow's
    `finish()` drops the sample in progress, the only one of a run shorter than 10 seconds, so it is published here.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        """Start to watch; the monitor's import and its calls to MLflow do not delay the run."""
        self._ends = Event()
        self._thread = Thread(target=self._watch, args=(uri, run_id), name="raysim-system-metrics", daemon=True)
        self._thread.start()

    def _watch(self, uri: str, run_id: str) -> None:
        with suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # a lost sample is no error
            monitor: Any = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)  # type: ignore[no-untyped-call]
            monitor.start()
            self._ends.wait()
            monitor.finish()
            monitor.publish_metrics(monitor.aggregate_metrics())
            monitor.mlflow_logger.flush()

    def finish(self, is_hasty: bool = False) -> None:
        """Log the last sample and stop; do not wait for that if the run has to end at once."""
        self._ends.set()
        self._thread.join(0.0 if is_hasty else LAST_SAMPLE_S)
