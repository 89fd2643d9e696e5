"""What is told of targets."""

import json
from dataclasses import replace

import pytest

from raysim.clock import outcomes
from raysim.config.metric import ACCURACY
from raysim.simulation.state import Reached, Totals, targets_of
from tests.clocked import FRAIL, clocked, played


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "over-selection", "async"])
def test_a_target_tells_what_had_been_spent_when_it_was_first_reached(mode: str) -> None:
    scenario = clocked("fedavg", mode, *FRAIL, "rounds=8", "training.learning_rate=0.05")
    _, plain = played(scenario)
    scores = [report.score.primary for report in plain]
    targets = (max(scores), 0.001, sorted(scores)[3], 1.0)
    assert max(scores) < 1
    state, reports = played(replace(scenario, targets=targets))
    told = targets_of(state.totals, targets, ACCURACY)
    assert [entry["accuracy"] for entry in told] == list(targets)
    for target, entry in zip(targets[:3], told[:3], strict=True):
        first = next(place for place, score in enumerate(scores) if score >= target)
        rows = [report.clients for report in reports[: first + 1]]
        finished = [columns["fate"] != outcomes.UNFINISHED for columns in rows]
        assert entry["round"] == first + 1
        assert entry["simulated_s"] == reports[first].totals.simulated_s
        for name, columns in (("bytes", ("down_bytes", "up_bytes")), ("train_flops", ("train_flops",))):
            assert entry[name] == sum(
                int(each[column][own].sum()) for each, own in zip(rows, finished, strict=True) for column in columns
            )
        joules = sum(float(each["energy_j"][own].sum()) for each, own in zip(rows, finished, strict=True))
        assert entry["energy_j"] == pytest.approx(joules, rel=1e-12)
    assert told[3] == {"accuracy": 1.0, **dict.fromkeys(("round", "simulated_s", "bytes", "train_flops", "energy_j"))}
    json.dumps(told, allow_nan=False)


def test_targets_come_in_the_order_they_were_asked_for() -> None:
    reached = (Reached(0.3, 2, 1.0, 2, 3, 4.0), Reached(0.1, 1, 0.5, 1, 1, 1.0))
    told = targets_of(Totals(reached=reached), (0.1, 0.9, 0.3), ACCURACY)
    assert [(entry["accuracy"], entry["round"]) for entry in told] == [(0.1, 1), (0.9, None), (0.3, 2)]
