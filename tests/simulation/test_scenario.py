"""What ends a run early."""

from dataclasses import replace

import pytest

from raysim.clock import outcomes
from raysim.simulation.forecast import forecast
from raysim.simulation.scenario import StopRules
from raysim.simulation.state import RoundReport
from tests.clocked import FRAIL, MODES, clocked, played

SPENT = {
    "simulated_s": lambda totals: totals.simulated_s,
    "bytes": lambda totals: totals.down_bytes + totals.up_bytes,
    "energy_j": lambda totals: totals.energy_j,
}


def scored_rounds(reports: list[RoundReport]) -> list[int]:
    return [report.round for report in reports if report.score is not None]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("quantity", SPENT)
def test_a_run_ends_with_the_round_in_which_enough_is_spent(quantity: str, mode: str) -> None:
    scenario = replace(clocked("magnitude", mode, *FRAIL), score_every=10)
    _, whole = played(scenario)
    assert scored_rounds(whole) == [4]
    after_two, after_three = (SPENT[quantity](whole[place].totals) for place in (1, 2))
    assert after_two < after_three
    for limit, rounds in ((after_two, 2), ((after_two + after_three) / 2, 3), (1e-9, 1)):
        stopping = replace(scenario, stop=StopRules(**{quantity: limit}))
        state, reports = played(stopping)
        assert [report.round for report in reports] == list(range(1, rounds + 1))
        assert scored_rounds(reports) == [rounds], "the last round is scored, whenever it comes"
        assert SPENT[quantity](state.totals) >= limit
        assert state.in_flight == ()
        if mode == "async":
            assert outcomes.UNFINISHED in state.totals.outcomes
            assert outcomes.UNFINISHED in reports[-1].clients["fate"]
        predicted = forecast(stopping)
        assert predicted["exact"]
        assert (predicted["rounds"], predicted["simulated_s"]) == (rounds, state.totals.simulated_s)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_ends_with_the_round_that_reaches_an_accuracy(mode: str) -> None:
    scenario = clocked("fedavg", mode, "rounds=8", "training.learning_rate=0.5")
    _, whole = played(scenario)
    accuracies = [report.score.primary for report in whole]
    place = next(p for p in range(1, 8) if accuracies[p] > max(accuracies[:p]))
    stopping = replace(scenario, stop=StopRules(primary=accuracies[place]))
    state, reports = played(stopping)
    assert [report.round for report in reports] == list(range(1, place + 2))
    assert state.totals.primary == accuracies[place]
    assert state.in_flight == ()
    assert not forecast(stopping)["exact"], "when it is reached depends on what is learned"
