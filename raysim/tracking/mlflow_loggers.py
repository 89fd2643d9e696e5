"""Silence the loggers that print the tracebacks of errors which raysim reports in one line."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock


class Silence:
    """Keeps loggers silent while somebody in any thread holds it; the last one puts their levels back."""

    def __init__(self, names: Sequence[str]) -> None:
        """Name the loggers."""
        self._loggers = [logging.getLogger(name) for name in names]
        self._before: list[int] = []
        self._holders = 0
        self._lock = Lock()

    def hold(self) -> None:
        """Silence the loggers until `release`, or for the rest of the process."""
        with self._lock:
            if self._holders == 0:
                self._before = [logger.level for logger in self._loggers]
            self._holders += 1
            for logger in self._loggers:
                logger.setLevel(logging.CRITICAL)

    def release(self) -> None:
        """Put the levels back, unless somebody else holds it."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                for logger, level in zip(self._loggers, self._before, strict=True):
                    logger.setLevel(level)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Silence the loggers while the context lasts."""
        self.hold()
        try:
            yield
        finally:
            self.release()


silence = Silence(("mlflow", "alembic", "sqlalchemy"))
