"""The report of a round: all that trackers see of it."""

from raysim.clock.work import Plan
from raysim.core.tensors import Columns
from raysim.pruning.coverage import CoverageSummary, channel_columns, summarise
from raysim.simulation import diagnostics
from raysim.simulation.accounting import mean_loss, submodel_score
from raysim.simulation.aggregation import ReceivedUpdates
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import RoundReport, Score, ServerState

NOTHING_TRAINED = CoverageSummary(mean=0.0, min=0.0, untrained_share=1.0, untrained_channel_share=1.0)


def report_round(
    scenario: Scenario,
    before: ServerState,
    after: ServerState,
    plan: Plan,
    clients: Columns,
    score: Score | None,
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
        score: Score of the global model. None: it was not evaluated.
        received: The updates that count. None: there are none.
        incidents: Failures in the executor after which work was repeated, a sentence each.
    """
    coverage, diagnosed = NOTHING_TRAINED, {}
    trained = () if received is None else (received.masks, received.work.cohort.examples)
    channels = channel_columns(scenario.workload.plan, after.round, *trained)
    if received is not None:
        cohort, masks = received.work.cohort, received.masks
        coverage = summarise(received.coverage, after.params, channels["clients"] > 0, int(cohort.examples.sum()))
        if diagnostics.is_due(scenario, after.round):
            diagnosed = diagnostics.diagnose(scenario, before, after, cohort, masks)
    return RoundReport(
        round=after.round,
        timestamp_ms=0,
        wall_s=0.0,
        round_s=plan.round_s,
        totals=after.totals,
        train_loss=mean_loss(clients),
        submodel=submodel_score(clients),
        score=score,
        coverage=coverage,
        clients=clients,
        tiers=scenario.workload.population.devices.tiers,
        channels=channels,
        diagnostics=diagnosed,
        is_asynchronous=not scenario.clock.mode.starts_together,
        incidents=incidents,
    )
