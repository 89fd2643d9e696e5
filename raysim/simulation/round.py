"""One round of federated learning, from selection to report: read this first."""

from dataclasses import replace

from raysim.client import evaluation
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.simulation.accounting import client_columns, with_score, with_targets
from raysim.simulation.aggregation import learn, receive
from raysim.simulation.assignments import assign
from raysim.simulation.planning import plan_round
from raysim.simulation.preparation import prepare
from raysim.simulation.reporting import report_round
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import RoundReport, Score, ServerState
from raysim.simulation.transition import end_work_in_flight, next_state


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

    # Evaluate: the global model on test rows, where it is due.
    params, score = evaluate(scenario, after, executor)
    after = replace(after, params=params, totals=with_score(after.totals, score))
    after, clients = end_work_in_flight(scenario, after, clients)
    after = replace(after, totals=with_targets(after.totals, score, scenario.targets, after.round))

    return after, report_round(scenario, state, after, plan, clients, score, received, executor.incidents())


def evaluate(scenario: Scenario, after: ServerState, executor: Executor) -> tuple[Params, Score | None]:
    """Score the global model where it is due; with static BatchNorm, re-estimate its statistics first.

    Returns:
        Parameters and buffers, statistics re-estimated; and the score. None: it is not due.
    """
    params = after.params
    if after.round % scenario.score_every and not scenario.is_over(after):
        return params, None
    served = methods.served(scenario.method, scenario.workload.plan, params, after.memory)
    if scenario.method.rules.static_norm and evaluation.batch_norms(scenario.workload.model):
        buffers = executor.estimate_statistics(served, scenario.statistics_rows)
        params, served = params | buffers, served | buffers
    return params, Score.of(scenario.workload.task, executor.score(served, scenario.test_rows))
