import io
import logging
import logging.config
import threading
import warnings

import pytest

from raysim.core.log import _show_warning, about, info, is_quiet, set_quiet, showing_warnings, warning


def test_a_line_names_the_round_and_the_clients_it_is_about(capsys):
    info("nobody's")
    with about(3):
        info("a round's")
        with about(9, [5]):  # the round it is told in stays: client 5 may have started before
            warning("a client's")
        with about(9, range(40)):
            info("a pack's")
        other = threading.Thread(target=info, args=("of a thread of its own",))
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
    set_quiet(True)
    try:
        info("for the curious")
        warning("for all")
        assert is_quiet()
    finally:
        set_quiet(False)
    assert capsys.readouterr() == ("", "for all\n")


def test_warnings_and_logs_of_others_are_said_as_ours_are(capsys):
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with showing_warnings(), about(2, [7]):
            warnings.warn("shapes differ", UserWarning, stacklevel=1)
            logging.getLogger("their.layer").warning("gain is %s", 3)
            logging.getLogger("their.layer").info("not of interest")
        assert warnings.showwarning is not _show_warning
    assert warnings.showwarning is before
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("round 2, client 7: UserWarning: shapes differ (test_log.py:")
    assert second == "round 2, client 7: their.layer: gain is 3"


@pytest.mark.parametrize("kind", [UserWarning, RuntimeWarning])
def test_filters_of_warnings_hold(kind, capsys):
    with warnings.catch_warnings(), showing_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("unheard", kind, stacklevel=1)
    assert capsys.readouterr().err == ""


@pytest.fixture
def other_loggers():
    """The loggers of all libraries, as they are again after the test."""
    loggers = [each for each in logging.Logger.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    before = [each.disabled for each in loggers]
    yield
    for each, was_disabled in zip(loggers, before, strict=True):
        each.disabled = was_disabled


@pytest.mark.usefixtures("other_loggers")
def test_a_configuration_of_other_loggers_leaves_ours_alone(capsys):
    logging.config.dictConfig({"version": 1})  # by default it disables all existing loggers
    info("still here")
    assert capsys.readouterr().err == "still here\n"


def test_a_handler_of_the_users_gets_whole_lines():
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logging.getLogger("raysim").addHandler(handler)
    try:
        with about(2, [1]):
            warning("100 % sure")
    finally:
        logging.getLogger("raysim").removeHandler(handler)
    assert written.getvalue() == "round 2, client 1: 100 % sure\n"
