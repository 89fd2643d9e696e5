import logging
import sys
import threading
import warnings

import pytest

from raysim.core.errors import RunFailedError
from raysim.core.log import (
    MOST_LINES,
    Remark,
    _show_warning,
    about,
    be_quiet,
    caught,
    is_quiet,
    listening,
    pass_on,
    say,
    warn,
)


def test_a_line_names_the_round_and_the_clients_it_is_about(capsys):
    say("nobody's")
    with about(3):
        say("a round's")
        with about(9, [5]):  # the round it is told in stays: client 5 may have started before
            warn("a client's")
        with about(9, range(40)):
            say("a pack's")
        other = threading.Thread(target=say, args=("of a thread of its own",))
        other.start()
        other.join()
    assert capsys.readouterr().err.splitlines() == [
        "nobody's",
        "round 3: a round's",
        "round 3, client 5: a client's",
        "round 3, clients 0, 1, 2 and 37 more: a pack's",
        "of a thread of its own",
    ]


def test_quiet_leaves_warnings(capsys):
    be_quiet(True)
    try:
        say("for the curious")
        warn("for all")
        assert is_quiet()
    finally:
        be_quiet(False)
    assert capsys.readouterr() == ("", "for all\n")


def test_warnings_and_logs_of_others_are_said_as_ours_are(capsys):
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with listening(), about(2, [7]):
            warnings.warn("shapes differ", UserWarning, stacklevel=1)
            logging.getLogger("their.layer").warning("gain is %s", 3)
            logging.getLogger("their.layer").info("not of interest")
        assert warnings.showwarning is not _show_warning
    assert warnings.showwarning is before
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("round 2, client 7: UserWarning: shapes differ (test_log.py:")
    assert second == "round 2, client 7: their.layer: gain is 3"


def test_what_is_caught_is_said_once_for_all_clients_and_printed_by_nobody(capsys):
    with caught() as remarks:
        for client in (4, 2, 4):
            with about(1, [client]):
                print("printed\n  twice", file=sys.stderr)
                warn("warned")
    assert remarks.taken() == (
        Remark("printed", 1, (2, 4)), Remark("  twice", 1, (2, 4)), Remark("warned", 1, (2, 4), is_warning=True),
    )  # fmt: skip
    assert remarks.taken() == ()
    assert capsys.readouterr() == ("", "")
    with about(8):
        pass_on([Remark("heard", 5, (2,))])
    assert capsys.readouterr().err == "round 8, client 2: heard\n"


def test_who_says_too_much_is_cut_short():
    with caught() as remarks, about(1, [0]):
        for number in range(MOST_LINES + 30):
            say(f"line {number}")
    *lines, last = remarks.taken()
    assert len(lines) == MOST_LINES
    assert str(last) == "round 1: 30 more lines are left out"


@pytest.mark.parametrize("kind", [UserWarning, RuntimeWarning])
def test_filters_of_warnings_hold(kind, capsys):
    with warnings.catch_warnings(), listening():
        warnings.simplefilter("ignore")
        warnings.warn("unheard", kind, stacklevel=1)
    assert capsys.readouterr().err == ""


def test_who_fails_tells_what_was_said_before():
    def fail() -> None:
        with caught(), about(3, [4]):
            warn("it gets hot")
            raise RunFailedError(3, 4, "burnt", "a traceback\n")

    with pytest.raises(RunFailedError) as failed:
        fail()
    assert str(failed.value) == "round 3, client 4: burnt"
    assert failed.value.details == "round 3, client 4: it gets hot\na traceback\n"
