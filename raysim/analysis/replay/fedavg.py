"""FedAvg's clock under the conditions of a replay: what dense clients would have spent, from the records of a run."""

import numpy as np
from torch import nn

from raysim.analysis.replay.finished_run import FinishedRun
from raysim.analysis.replay.work import Conditions
from raysim.client.training import LocalTraining
from raysim.client.view import Workload
from raysim.data.row_sets import RowSets
from raysim.data.splits import DataSplits
from raysim.methods import resolve as methods
from raysim.methods.method import Method
from raysim.models.cost import ModelCost
from raysim.population.population import Population
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.selection import table as selection
from raysim.server.optimizers import ServerOptimizer
from raysim.simulation import fedavg
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import DenseTotals, ServerState, Totals

NO_ROWS = np.empty(0, dtype=np.int64)


class KnownCosts(CostTable):
    """Costs of the full model as they were recorded; there is no model to cut."""

    def __init__(self, dense: ModelCost) -> None:
        super().__init__(nn.Identity(), ChannelPlan.dense(nn.Identity(), "it was not recorded"), ())
        self._recorded = dense

    def of(self, mask: Mask) -> ModelCost:
        """Return the costs of the full model."""
        return self._recorded


def why_unknown(recorded: FinishedRun) -> str:
    """Return why what FedAvg would have spent cannot be computed; empty: it can."""
    settings = recorded.settings
    found = fedavg.why_not_compared(settings.selection.rule, settings.stop.given)
    if recorded.examples is None and not found:
        return "the records of this run's version do not have the training rows of every client"
    return found


class DenseReplay:
    """FedAvg's clock from round to round, with the run's seed and selection rule; see `raysim.simulation.fedavg`."""

    def __init__(self, recorded: FinishedRun, method: Method, conditions: Conditions) -> None:
        self._is_known = not why_unknown(recorded)
        self._is_own = fedavg.spends_as_much(method)
        self._state: ServerState | None = None
        if self._is_known and not self._is_own:
            self._scenario = scenario_of(recorded, conditions)

    def after(self, totals: Totals, is_last: bool) -> DenseTotals | None:
        """Return what FedAvg has spent after the next round, whose own totals these are."""
        if not self._is_known or self._is_own:
            return fedavg.totals_of(totals) if self._is_known else None
        self._state = fedavg.next_round(self._scenario, self._state, is_last)
        return fedavg.totals_of(self._state.totals)


def scenario_of(recorded: FinishedRun, conditions: Conditions) -> Scenario:
    """Return a scenario of FedAvg that can be planned but not trained: with devices and row counts, without data."""
    settings, counts = recorded.settings, recorded.examples
    if counts is None:
        raise ValueError("the training rows of the clients are not known")
    local = LocalTraining(epochs=settings.training.epochs, batch_size=settings.training.batch_size)
    owned = RowSets(np.concatenate([[0], np.cumsum(counts)]), NO_ROWS)
    population = Population(conditions.devices, owned, RowSets(np.zeros_like(owned.offsets), NO_ROWS))
    images, labels = np.empty((0, 1, 1, 1), dtype=np.uint8), NO_ROWS
    data = DataSplits(settings.data.name, images, labels, images, labels, 1, 1.0, (0.0,), (1.0,))
    chosen = settings.selection
    return Scenario(
        workload=Workload(
            conditions.seed,
            data,
            population,
            nn.Identity(),
            ChannelPlan.dense(nn.Identity(), "it was not recorded"),
            local,
        ),
        method=methods.resolve("fedavg", {}, local),
        server=ServerOptimizer(),
        costs=KnownCosts(ModelCost(**recorded.summary["full_model"])),
        cohort_size=conditions.cohort_size,
        rounds=settings.rounds,
        score_every=1,
        test_rows=NO_ROWS,
        statistics_rows=NO_ROWS,
        scored_share=0.0,
        clock=conditions.rules,
        selection=selection.resolve(chosen.rule, chosen.options, chosen.clients_per_round),
    )
