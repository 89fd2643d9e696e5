"""FedAvg's clock: what a run of FedAvg would have spent in the same rounds, without training.

Dense clients live under the run's own clock mode, deadline, availability and batteries, with the same seeds. They
take longer, so that other clients may be late, offline or selected: they have a clock, batteries and a queue of
their own.
"""

from dataclasses import replace

import numpy as np

from raysim.core.tensors import Params
from raysim.methods.method import Method, RoundView
from raysim.pruning.masks import CohortMasks, Mask
from raysim.selection.table import looks_at
from raysim.simulation.accounting import client_columns
from raysim.simulation.planning import plan_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import DenseTotals, ServerState, Totals
from raysim.simulation.transition import abandon_work_in_flight, initial_history, next_state


def with_fedavg(scenario: Scenario, before: ServerState, after: ServerState) -> ServerState:
    """Return the state after a round with what FedAvg would have spent by its end.

    Args:
        scenario: The run.
        before: The state before the round.
        after: The state after it.
    """
    if why_not_compared(scenario.selection.name, scenario.stop.given):
        return after
    if spends_as_much(scenario.method):
        return replace(after, totals=replace(after.totals, fedavg=totals_of(after.totals)))
    dense = next_round(scenario.dense, before.fedavg, scenario.is_over(after))
    return replace(after, fedavg=dense, totals=replace(after.totals, fedavg=totals_of(dense.totals)))


def why_not_compared(rule: str, stop: str) -> str:
    """Return why nobody knows what FedAvg would have spent, without training it; empty: it is known.

    Args:
        rule: The rule that selects clients.
        stop: The setting of a score that ends the run, with its value; empty: none does.
    """
    if looks_at(rule, "last_loss"):
        return f"selection.rule={rule!r} may select clients by losses, and those of FedAvg are not known"
    if stop:
        return f"{stop} ends the run, and when FedAvg reaches that is not known"
    return ""


def spends_as_much(method: Method) -> bool:
    """Whether a run of the method is one of FedAvg: its own clock is then that of the dense clients."""
    return method.name == "fedavg" and method.objective.load is None and method.rules.compression is None


def next_round(dense: Scenario, before: ServerState | None, is_last: bool) -> ServerState:
    """Return the state of FedAvg's clock after another round: totals, history and work in flight, no parameters.

    Args:
        dense: The run with FedAvg as its method.
        before: The state of this clock before the round. None: it is round 1.
        is_last: Whether the run ends with the round; work in flight ends unfinished then.
    """
    if before is None:
        before = ServerState(0, {}, history=initial_history(dense))
    plan = plan_round(dense, before, _whole_model)
    columns = client_columns(dense, before, plan)
    after = next_state(dense, before, plan, {}, {}, columns, None)
    return abandon_work_in_flight(dense, after, columns)[0] if is_last else after


def _whole_model(scenario: Scenario, view: RoundView) -> tuple[CohortMasks, Params]:
    whole = Mask.whole(view.plan)
    return CohortMasks((whole,), np.zeros(len(view.clients), dtype=np.int64)), {}


def totals_of(totals: Totals) -> DenseTotals:
    """Return what the dense clients have spent, from the totals of their clock."""
    return DenseTotals(
        down_bytes=totals.down_bytes,
        up_bytes=totals.up_bytes,
        train_flops=totals.train_flops,
        simulated_s=totals.simulated_s,
        energy_j=totals.energy_j,
        client_rounds=totals.client_rounds,
    )
