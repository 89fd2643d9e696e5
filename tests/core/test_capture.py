"""Lines that an actor logs and prints are collected for the process that shows them."""

import logging
import sys
import warnings

import pytest

from raysim.core.capture import MAX_LINES, captured
from raysim.core.errors import RunFailedError
from raysim.core.log import LogLine, about, info, relay, warning


def test_equal_lines_of_several_clients_are_captured_once_and_not_shown(capsys):
    with captured() as remarks:
        for client in (4, 2, 4):
            with about(1, [client]):
                print("printed\n  twice", file=sys.stderr)
                warning("warned")
    assert remarks.pop() == (
        LogLine("printed", 1, (2, 4)),
        LogLine("  twice", 1, (2, 4)),
        LogLine("warned", 1, (2, 4), is_warning=True),
    )
    assert remarks.pop() == ()
    assert capsys.readouterr() == ("", "")
    with about(8):
        relay([LogLine("heard", 5, (2,))])
    assert capsys.readouterr().err == "round 8, client 2: heard\n"


def test_the_lines_of_a_round_are_limited():
    with captured() as remarks, about(1, [0]):
        for number in range(MAX_LINES + 30):
            info(f"line {number}")
    *lines, last = remarks.pop()
    assert len(lines) == MAX_LINES
    assert str(last) == "round 1: 30 more lines are left out"


def test_a_failure_includes_the_lines_before_it():
    def fail() -> None:
        with captured(), about(3, [4]):
            warning("it gets hot")
            raise RunFailedError(3, 4, "burnt", "a traceback\n")

    with pytest.raises(RunFailedError) as failed:
        fail()
    assert str(failed.value) == "round 3, client 4: burnt"
    assert failed.value.details == "round 3, client 4: it gets hot\na traceback\n"


def test_everything_that_prints_is_captured_in_its_order(capsys):
    with captured() as lines, about(1, [3]):
        print("no end", end="")
        print(" yet\n\nan end")
        sys.stderr.buffer.write(b"halv")
        sys.stderr.buffer.write("es of ü\n".encode()[:7])
        sys.stderr.buffer.write("es of ü\n".encode()[7:])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("odd", stacklevel=1)
        logging.getLogger("their.layer").warning("gain is %s", 3)
        print("unfinished", end="")
    assert [line.text.split(" (")[0] for line in lines.pop()] == [
        "no end yet",
        "an end",
        "halves of ü",
        "UserWarning: odd",
        "their.layer: gain is 3",
        "unfinished",
    ]
    assert capsys.readouterr() == ("", "")


def test_a_logger_that_prints_by_itself_is_captured_once():
    theirs = logging.getLogger("prints.by.itself")
    with captured() as lines:
        handler = logging.StreamHandler()
        theirs.addHandler(handler)
        theirs.warning("hot")
        theirs.removeHandler(handler)
    assert [str(line) for line in lines.pop()] == ["hot"]


def test_afterwards_lines_are_shown_again(capsys):
    with captured():
        info("collected")
    info("shown")
    assert capsys.readouterr().err == "shown\n"
