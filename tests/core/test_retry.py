import doctest
import time

import pytest

from raysim.core import retry as retries
from raysim.core.retry import pause_s, retry


class Failing:
    """Fails a number of times, then works."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.calls = times, error, list[float]()

    def __call__(self) -> str:
        self.calls.append(time.monotonic())
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


def test_the_examples_of_pauses_hold() -> None:
    assert doctest.testmod(retries) == (0, 1)


@pytest.mark.slow
def test_a_call_is_repeated_with_longer_and_longer_pauses(monkeypatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.05)
    call = Failing(3, ConnectionError("away"))
    assert retry(call, (ConnectionError, TimeoutError), 60.0) == "done"
    pauses = [later - earlier for earlier, later in zip(call.calls, call.calls[1:], strict=False)]
    assert len(pauses) == 3
    assert all(pause >= pause_s(failures) for failures, pause in enumerate(pauses, 1))


def test_a_call_is_given_up_before_its_patience_ends(monkeypatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.05)
    call = Failing(100, ConnectionError("away"))
    with pytest.raises(ConnectionError, match="away"):
        retry(call, ConnectionError, 0.2)
    assert len(call.calls) in (2, 3), "at 0, 0.05 and, unless the machine is busy, 0.15 s"


def test_other_errors_are_raised_at_once() -> None:
    call = Failing(1, FileNotFoundError("model.safetensors"))
    with pytest.raises(FileNotFoundError):
        retry(call, ConnectionError, 60.0)
    assert len(call.calls) == 1
