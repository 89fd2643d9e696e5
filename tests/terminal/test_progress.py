import itertools
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from raysim.clock import outcomes
from raysim.core.log import LogLine, set_quiet
from raysim.pruning.coverage import CoverageSummary
from raysim.simulation.state import RoundReport, Totals
from raysim.terminal import progress
from raysim.terminal.progress import TIERS_IN_LINE, Pace, ProgressDisplay, tier_table, tiers_in_line
from raysim.terminal.tier_lines import MOST_TIERS, TierLine, tier_lines


def report(round: int, accuracy: float | None) -> RoundReport:
    totals = Totals(simulated_s=90.0 * round, primary=accuracy)
    coverage = CoverageSummary(1.0, 1.0, 0.0, 0.0)
    return RoundReport(round, 0, 0.0, 0.0, totals, 1.0, None, None, coverage, cohort(3, ("a",)), ("a",))


def cohort(size: int, tiers: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """A table of clients, drawn; a third of them are not scored."""
    rng = np.random.default_rng(seed)
    fates = rng.choice([outcomes.COUNTED, outcomes.LATE, outcomes.UNREACHABLE], size, p=[0.8, 0.1, 0.1])
    counted, is_absent = fates == outcomes.COUNTED, fates == outcomes.UNREACHABLE
    return {
        "client": np.arange(size),
        "tier": np.array(tiers)[rng.integers(len(tiers), size=size)],
        "fate": fates,
        "pruning_ratio": np.where(is_absent, np.nan, rng.uniform(size=size)),
        "accuracy": np.where(counted & (rng.uniform(size=size) < 0.66), rng.uniform(size=size), np.nan),
        "total_s": np.where(is_absent, 0.0, rng.exponential(size=size)),
    }


@pytest.fixture
def quiet():
    set_quiet(True)
    yield
    set_quiet(False)


def test_what_was_said_and_went_wrong_in_a_round_is_told_before_it(capsys):
    long = "a client actor was lost (its process ended); " + "clients 1, 2, 3 are trained again " * 5
    with ProgressDisplay(2) as display:
        said = LogLine("loss is odd", 1, (2, 5), is_warning=True)
        display.show(replace(report(1, 0.5), incidents=(long, "[red] client 4"), remarks=(said,)))
    told = capsys.readouterr()
    remark, first, second, third, _ = told.err.splitlines()
    assert remark == "round 1, clients 2, 5: loss is odd"
    assert (first, second, told.out) == (f"round 1: {long}", "round 1: [red] client 4", "")
    assert third.startswith("round 1/2  accuracy 0.5000")


def test_without_a_terminal_a_round_is_one_line_on_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressDisplay(2) as display:
        display.show(report(1, None))
        display.show(report(2, 0.5))
    captured = capsys.readouterr()
    assert captured.out == ""
    first, tiers, second, last = captured.err.splitlines()
    assert re.fullmatch(r"round 1/2  accuracy -  simulated 1 min 30 s  left \d+\.\d s", first)
    assert second == "round 2/2  accuracy 0.5000  simulated 3 min 0 s"
    heading = r"  tiers \(counted, pruned, accuracy, median s\): "
    assert re.fullmatch(heading + r"a \d/3 \d+\.\d% \S+ \d+\.\d\d", tiers)
    assert last == tiers


def test_quiet_shows_what_went_wrong_alone(capsys, quiet):
    with ProgressDisplay(2) as display:
        display.show(report(1, 0.5))
        printed = LogLine("a layer prints", 2, (1,))
        display.show(replace(report(2, 0.5), incidents=("an actor was lost",), remarks=(printed,)))
    assert capsys.readouterr().err == "round 2: an actor was lost\n"


@pytest.mark.slow
def test_of_many_quick_rounds_one_a_second_has_a_line_and_the_last_one(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressDisplay(10_000) as display:
        for round in range(1, 10_000):
            now[0] += 0.02
            display.show(report(round, 0.5))
    lines = capsys.readouterr().err.splitlines()
    of_tiers = [line for line in lines if line.startswith("  tiers")]
    assert len(of_tiers) == 21, "one in 10 s of 200 s, and the last"
    assert of_tiers[-1] == lines[-1]
    shown = [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("round")]
    assert shown[:20] == [*range(1, 21)]
    assert 190 <= len(shown) <= 225
    assert shown[-1] == 9999
    assert {later - earlier for earlier, later in itertools.pairwise(shown[20:-1])} <= {50, 51}


def test_the_pace_is_that_of_the_latest_rounds_of_this_process():
    now = [0.0]
    pace = Pace(100, done=40, now=lambda: now[0])
    assert pace.left_s is None
    now[0] = 300.0  # the first round has to wait for all that starts
    pace.note(41)
    assert pace.left_s == pytest.approx(59 * 300)
    for round in range(42, 94):
        now[0] += 2.0
        pace.note(round)
    assert pace.left_s == pytest.approx(7 * 2.0)
    now[0] += 1.5
    assert pace.left_s == pytest.approx(7 * 2.0 - 1.5)
    now[0] += 100
    assert (pace.left_s, pace.elapsed_s) == (0.0, now[0])


def test_the_line_of_a_tier_is_what_its_clients_come_to():
    tiers = ("small", "medium", "large", "nobody")
    clients = cohort(200, tiers[:3])
    found = tier_lines(clients, tiers)
    assert [line.tier for line in found] == list(tiers)
    for line in found[:3]:
        rows = [row for row in range(200) if clients["tier"][row] == line.tier]
        counted = [row for row in rows if clients["fate"][row] == outcomes.COUNTED]
        scored = [clients["accuracy"][row] for row in rows if clients["accuracy"][row] == clients["accuracy"][row]]
        seconds = sorted(clients["total_s"][row] for row in counted)
        middle = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        assert (line.counted, line.selected) == (len(counted), len(rows))
        assert line.pruning_ratio == pytest.approx(
            sum(clients["pruning_ratio"][row] for row in counted) / len(counted)
        )
        assert line.score == pytest.approx(sum(scored) / len(scored))
        assert line.client_s == pytest.approx(middle)
    assert tier_table(found[3:])[1].split() == ["nobody", "0/0", "-", "-", "-"]
    line = TierLine("medium", 3, 5, 0.51234, 0.25, 12.3456)
    assert tier_table([line])[1].split() == ["medium", "3/5", "51.2%", "0.2500", "12.35"]


def test_of_many_tiers_those_with_most_clients_have_lines():
    tiers = tuple(f"device {number:03}" for number in range(300))
    clients = cohort(2000, tiers) | {"tier": np.array(tiers)[np.arange(2000) % 300 // 20 * 20]}
    found = tier_lines(clients, tiers)
    assert len(found) == MOST_TIERS
    few = replace(report(1, 0.5), clients=clients, tiers=tiers)
    assert tiers_in_line(few).count(";") == TIERS_IN_LINE
    assert tiers_in_line(few).endswith("; and 296 more")
    fewest = min(line.selected for line in found)
    assert sum(np.unique(clients["tier"], return_counts=True)[1] > fewest) <= MOST_TIERS


def test_the_lines_of_ten_thousand_clients_take_a_millisecond_or_two():
    tiers = ("flagship", "high-end", "mid-range", "low-end", "entry-level")
    clients, seconds = cohort(10_000, tiers), []
    for _ in range(60):
        started = time.perf_counter()
        tier_lines(clients, tiers)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 3e-3  # the quickest: others use this machine, too
