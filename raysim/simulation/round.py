"""One round of federated learning, from selection to report: read this first."""

from dataclasses import replace

from raysim.simulation.accounting import client_columns, with_evaluation, with_targets
from raysim.simulation.aggregation import learn, receive
from raysim.simulation.assignments import assign
from raysim.simulation.evaluation import evaluate
from raysim.simulation.fedavg import with_fedavg
from raysim.simulation.planning import plan_round
from raysim.simulation.preparation import prepare
from raysim.simulation.reporting import report_round
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import RoundReport, ServerState
from raysim.simulation.transition import end_work_in_flight, next_state
from raysim.simulation.widths import score_widths


def run_round(scenario: Scenario, state: ServerState, executor: Executor) -> tuple[ServerState, RoundReport]:
    """Run one round and return the state after it, with its report.

    All clock modes, methods and executors share this walk; `docs/architecture.md` names what each step calls.

    Raises:
        RunFailedError: If a client fails or diverges.
    """
    if state.round == 0:
        state = prepare(scenario, state, executor)  # what a method does before round 1

    # Plan: select clients, solve budgets, choose masks, schedule; known before anybody trains.
    plan = plan_round(scenario, state)

    # Train: clients cut their submodels, train and reconstruct them; the server receives exact sums of updates.
    assigned = [assign(scenario, state, work) for work in plan.counted]
    updates = executor.train_versions(assigned)

    # Aggregate: normalise by coverage, step the server's optimizer, let the method learn.
    received = receive(scenario, state, plan.counted, updates)
    params, memory = learn(scenario, state, plan, received)

    # Account: seconds, joules, bytes and FLOPs of every client, and the state they leave.
    clients = client_columns(scenario, state, plan, received)
    after = next_state(scenario, state, plan, params, memory, clients, received)

    # Evaluate: the global model on test and validation rows, whole and cut to each width, where it is due.
    evaluated = evaluate(scenario, after, executor)
    after = replace(
        after, params=evaluated.params, totals=with_evaluation(after.totals, evaluated, after.round, scenario.primary)
    )
    evaluated = replace(evaluated, widths=score_widths(scenario, state, after, evaluated, executor))
    after, clients = end_work_in_flight(scenario, after, clients)
    totals = replace(after.totals, widths=evaluated.widths or after.totals.widths)
    after = replace(
        after, totals=with_targets(totals, evaluated.score, scenario.targets, after.round, scenario.primary)
    )
    after = with_fedavg(scenario, state, after)  # what dense clients would have spent under the same clock

    return after, report_round(scenario, state, after, plan, clients, evaluated, received, executor.incidents())
