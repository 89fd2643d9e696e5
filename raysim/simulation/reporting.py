"""The report of a round: all that trackers see of it."""

from raysim.clock.work import Plan
from raysim.core.tensors import Columns
from raysim.pruning.coverage import CoverageSummary, channel_columns, summarise
from raysim.simulation import diagnostics
from raysim.simulation.accounting import mean_loss, submodel_score
from raysim.simulation.aggregation import ReceivedUpdates, cohort_report
from raysim.simulation.evaluation import Evaluation
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, ServerState


def report_round(
    scenario: Scenario,
    before: ServerState,
    after: ServerState,
    plan: Plan,
    clients: Columns,
    evaluated: Evaluation,
    received: ReceivedUpdates | None,
    incidents: tuple[str, ...],
) -> RoundReport:
    """Return the report of a round.

    Args:
        scenario: The run.
        before: The state before the round.
        after: The state after it.
        plan: The round's plan.
        clients: Its table of clients.
        evaluated: The scores of the global model.
        received: The updates that count. None: there are none.
        incidents: Failures in the executor after which work was repeated, a sentence each.
    """
    coverage, diagnosed, figures = CoverageSummary.none(), {}, {}
    trained = () if received is None else (received.masks, received.work.cohort.examples)
    channels = channel_columns(scenario.workload.plan, after.round, *trained)
    if received is not None:
        cohort, masks = received.work.cohort, received.masks
        coverage = summarise(received.coverage, after.params, channels["clients"] > 0, int(cohort.examples.sum()))
        if diagnostics.is_due(scenario, after.round):
            diagnosed = diagnostics.diagnose(scenario, before, after, cohort, masks)
        if scenario.method.figures is not None:
            figures = dict(scenario.method.figures(cohort_report(scenario, before, received)))
    return RoundReport(
        round=after.round,
        timestamp_ms=0,
        wall_s=0.0,
        round_s=plan.round_s,
        totals=after.totals,
        train_loss=mean_loss(clients),
        submodel=submodel_score(clients, scenario.primary),
        score=evaluated.score,
        validation=evaluated.validation,
        widths=evaluated.widths,
        coverage=coverage,
        clients=clients,
        tiers=scenario.workload.population.devices.tiers,
        channels=channels,
        diagnostics=diagnosed,
        figures=figures,
        is_asynchronous=not scenario.clock.mode.starts_together,
        incidents=incidents,
        primary=scenario.primary,
    )
