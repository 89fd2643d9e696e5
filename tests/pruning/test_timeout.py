import cProfile
import threading
import time

import pytest

from raysim.pruning.timeout import within


def endless() -> None:
    while True:
        pass


def stubborn() -> None:
    for _ in range(2):
        try:
            endless()
        except BaseException:
            continue
    endless()


@pytest.mark.parametrize("function", [endless, stubborn])
def test_a_call_that_does_not_end_is_ended(function) -> None:
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match="not done within"):
        within(0.1, function)
    assert time.perf_counter() - started < 10


def test_it_works_in_any_thread() -> None:
    ended = []

    def run() -> None:
        try:
            within(0.1, endless)
        except TimeoutError:
            ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert ended == [True]


def test_it_works_under_a_profiler() -> None:
    profile = cProfile.Profile()
    with profile, pytest.raises(TimeoutError):
        within(0.1, endless)


def test_results_and_errors_pass_through() -> None:
    assert within(10, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0)


def test_no_interruption_is_left_behind_however_close_the_end() -> None:
    """The limit runs out while the call returns: it may count as late, but nothing strikes afterwards."""
    late = 0
    for attempt in range(300):
        limit_s = 1e-4 * (attempt % 10)
        try:
            within(limit_s, lambda limit_s=limit_s: time.sleep(limit_s))
        except TimeoutError:
            late += 1
        for _ in range(50):
            pass
    assert late < 300
