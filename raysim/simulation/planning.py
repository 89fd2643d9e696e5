"""Plan a round before anybody trains: who takes part, with which submodel, until when, and whose work counts."""

from collections.abc import Callable

from raysim.clock.work import Plan
from raysim.simulation.async_planning import plan_buffer
from raysim.simulation.cohort import ChooseMasks, choose_masks, planned_work, with_interruptions
from raysim.simulation.participants import respond, select_clients
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def plan_round(scenario: Scenario, state: ServerState, choose: ChooseMasks = choose_masks) -> Plan:
    """Plan a round in the scenario's clock mode.

    Args:
        scenario: The run.
        state: The server state before the round.
        choose: Chooses the cohort's masks.
    """
    return PLANNERS[scenario.clock.mode.name](scenario, state, choose)


def plan_cohort(scenario: Scenario, state: ServerState, choose: ChooseMasks = choose_masks) -> Plan:
    """Plan a round whose cohort starts together."""
    rules, population = scenario.clock, scenario.workload.population
    wanted = rules.mode.num_selected(rules, scenario.cohort_size)
    selected = select_clients(scenario, state, min(wanted, len(population)))
    cohort, absent = respond(scenario, state, selected)
    if not len(cohort.clients):
        return Plan((), absent, (), rules.nobody_s + rules.server_s, state.memory)
    work, memory = planned_work(scenario, state, cohort, choose)
    work, cohort_s = rules.mode.end(with_interruptions(scenario, state, work), rules, scenario.cohort_size)
    return Plan((work,), absent, (), cohort_s + rules.server_s, memory)


PLANNERS: dict[str, Callable[[Scenario, ServerState, ChooseMasks], Plan]] = {
    "sync": plan_cohort,
    "deadline": plan_cohort,
    "over-selection": plan_cohort,
    "async": plan_buffer,
}
"""How the rounds of each clock mode are planned."""
