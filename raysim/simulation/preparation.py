"""Preparation: what a method trains before round 1, with all clients present and on mains; its costs count."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raysim.client.assignments import Broadcast, LocalRules
from raysim.client.hooks import LocalHooks
from raysim.clock import energy, outcomes
from raysim.clock.timing import CohortLoad, CohortTiming
from raysim.clock.work import Cohort, Work
from raysim.core.tensors import Params
from raysim.methods.method import LoadRule, Objective
from raysim.pruning.coverage import count_coverage
from raysim.pruning.masks import CohortMasks, Mask
from raysim.server.fill import apply_updates, fill_holders
from raysim.server.updates import ClientUpdates
from raysim.simulation import client_state, frozen
from raysim.simulation.accounting import account_preparation
from raysim.simulation.assignments import assignments_of
from raysim.simulation.cohort import load_of, schedule_cohort, view_of
from raysim.simulation.participants import cohort_of
from raysim.simulation.scenario import Executor, Scenario
from raysim.simulation.state import ServerState


def prepare(scenario: Scenario, state: ServerState, executor: Executor) -> ServerState:
    """Return the state at the start of round 1, with the costs of preparation; batteries are full then."""
    if scenario.method.prepare is None:
        return state
    everybody = np.arange(len(scenario.workload.population))
    view = view_of(scenario, state, cohort_of(scenario, everybody, round=0))
    trainer = _Trainer(scenario, state, executor)
    params, memory = scenario.method.prepare(view, trainer)
    return replace(trainer.state, params=params, memory=memory)


class _Trainer:
    """Trains clients and adds their costs; see `raysim.methods.method.Trainer`."""

    def __init__(self, scenario: Scenario, state: ServerState, executor: Executor) -> None:
        self.state, self._scenario, self._executor = state, scenario, executor
        self._round = 1

    def __call__(
        self,
        clients: NDArray[np.int64],
        mask: Mask,
        epochs: int,
        hooks: tuple[Callable[..., LocalHooks], ...],
        params: Params,
        travels: bool = True,
        charge: LoadRule | None = None,
    ) -> tuple[ClientUpdates, Params]:
        scenario, state = self._scenario, self.state
        self._round -= 1  # 0, -1, ...: every call draws its own random numbers
        cohort = replace(
            cohort_of(scenario, clients, self._round),
            epochs=np.full(len(clients), epochs),
            keep_ratios=np.ones(len(clients)),
        )
        rules = LocalRules(hooks)  # updates before round 1 are not compressed
        method = replace(scenario.method, load=None, objective=Objective(), rules=rules)
        unscored = replace(scenario, scored_share=0.0, method=method)
        masks = CohortMasks.of([mask] * len(clients))

        def load_for(cohort: Cohort) -> CohortLoad:
            view = view_of(unscored, state, cohort)
            load = frozen.without_held(scenario, state.history, clients, masks, load_of(unscored, view, masks))
            return load if charge is None else charge(view, masks, load)

        assignments = assignments_of(unscored, cohort, masks, load_for(cohort), {})
        contribution = self._executor.train(assignments, Broadcast(self._round, params, rules, {}))
        epochs_trained = contribution.clients["epochs"].astype(np.int64)
        load = load_for(replace(cohort, epochs=epochs_trained))  # exploration may have ended early
        timing = schedule_cohort(unscored, cohort, load)
        if not travels:
            load = replace(load, down_bytes=load.down_bytes * 0, up_bytes=load.up_bytes * 0)
            timing = replace(timing, download_s=timing.download_s * 0, upload_s=timing.upload_s * 0)
        self.state = replace(
            state,
            clients=client_state.updated(state.clients, contribution.memories),
            totals=account_preparation(state.totals, load, timing, self._energy_j(cohort, masks, load, timing)),
            history=frozen.with_received(scenario, state.history, clients, masks),
        )
        coverage = count_coverage(scenario.workload.plan, masks, cohort.examples)
        aggregated = apply_updates(
            params,
            scenario.buffers,
            contribution.sums["update"].value,
            coverage,
            int(cohort.examples.sum()),
            fill_holders,
            1.0,
            average_buffers=True,
            largest=contribution.largest,
            frozen=scenario.frozen,
        )
        return contribution, aggregated

    def _energy_j(self, cohort: Cohort, masks: CohortMasks, load: CohortLoad, timing: CohortTiming) -> float:
        """Return the joules of a training, including those of clients that wait for the slowest."""
        size = len(cohort.clients)
        outcome_of = np.full(size, outcomes.COUNTED, dtype=outcomes.DTYPE)
        work = Work(cohort, masks, load, timing, np.zeros(size), timing.total_s, outcome_of)
        devices = self._scenario.workload.population.devices.of(cohort.clients)
        waits_s = timing.total_s.max() - timing.total_s
        return float(energy.spent_j(devices, work, waits_s).sum())
