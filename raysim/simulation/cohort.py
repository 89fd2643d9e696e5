"""A cohort's view of the model: its masks, what they transfer and compute, and how long that takes."""

from collections.abc import Callable
from functools import partial

import numpy as np

from raysim.clock import outcomes
from raysim.clock.interruptions import interrupted
from raysim.clock.modes import fit_epochs
from raysim.clock.timing import CohortLoad, CohortTiming, schedule
from raysim.clock.work import Cohort, Work
from raysim.core.tensors import Params
from raysim.data.batches import num_batches
from raysim.methods import resolve as methods
from raysim.methods.method import RoundView
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks, Mask
from raysim.simulation import frozen
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState

ChooseMasks = Callable[[Scenario, RoundView], tuple[CohortMasks, Params]]
"""From the server's view of a round to each client's mask, and the method's memory with its ranking renewed."""


def view_of(scenario: Scenario, state: ServerState, cohort: Cohort) -> RoundView:
    """Return what the server knows when it decides on a round; the method may look at nothing else."""
    workload = scenario.workload
    return RoundView(
        plan=workload.plan,
        costs=scenario.costs,
        local=workload.local,
        options=scenario.method.options,
        seed=workload.seed,
        num_clients=len(workload.population),
        num_examples=scenario.num_examples,
        devices=workload.population.devices,
        cohort=cohort,
        params=state.params,
        memory=state.memory,
        client_memory=state.clients,
        update_bytes=partial(methods.update_bytes, scenario.method, scenario.costs),
    )


def choose_masks(scenario: Scenario, view: RoundView) -> tuple[CohortMasks, Params]:
    """Rank the channels and keep, for each client, as many of the best as its budget allows."""
    scores, memory = methods.rank(scenario.method, view)
    return methods.choose_masks(scenario.method, view, scores), memory


def load_of(scenario: Scenario, view: RoundView, masks: CohortMasks) -> CohortLoad:
    """Count what each client transfers and computes for its own submodel, if it holds nothing of it yet."""
    down_bytes, up_bytes = masks.each(partial(transfer_bytes, scenario)).T
    rows_trained = view.examples * view.epochs
    load = CohortLoad(
        down_bytes=down_bytes,
        up_bytes=up_bytes,
        train_flops=rows_trained * masks.each(lambda mask: scenario.costs.of(mask).train_flops),
        activation_bytes=rows_trained * masks.each(lambda mask: scenario.costs.of(mask).activation_bytes),
        steps=view.epochs * num_batches(view.examples, view.local.batch_size),
    )
    return methods.load_of(scenario.method, view, masks, load)


def transfer_bytes(scenario: Scenario, mask: Mask) -> tuple[int, int]:
    """Return the bytes that travel down and up for one client that holds no frozen parameters yet.

    Down: the submodel and, where it is cut, one bit per channel that marks it; for masks of single entries
    the kept ones, and a bitmap or an index list of the submodel's entries. Up: the update, compressed where updates
    are, and the channel sums the method asks for; the server knows the mask.
    """
    pruned = scenario.costs.pruned_elements(mask)
    model_bytes = scenario.costs.of(mask).model_bytes - scenario.costs.pruned_bytes(mask)
    mask_bytes = 0 if mask.kept.all() else -(-scenario.workload.plan.num_units // 8)
    if pruned:
        entries = scenario.costs.masked_entries(mask)
        mask_bytes += elements.mask_bytes(entries, entries - sum(pruned.values()))
    update_bytes = methods.update_bytes(scenario.method, scenario.costs, mask)
    return model_bytes + mask_bytes, update_bytes + methods.score_bytes(scenario.method, mask)


def schedule_cohort(scenario: Scenario, cohort: Cohort, load: CohortLoad) -> CohortTiming:
    """Compute when each client will be done."""
    devices = scenario.workload.population.devices.of(cohort.clients)
    return schedule(load, devices, cohort.clients, cohort.round, scenario.workload.seed)


def planned_work(scenario: Scenario, state: ServerState, cohort: Cohort, choose: ChooseMasks) -> tuple[Work, Params]:
    """Return the work of a cohort that starts now and is not interrupted, and the method's memory.

    With a deadline and partial work, clients that would be late train fewer epochs.
    """
    masks, memory = choose(scenario, view_of(scenario, state, cohort))
    cohort, load, timing = _fitted(scenario, state, cohort, masks)
    size = len(cohort.clients)
    outcome_of = np.full(size, outcomes.COUNTED, dtype=outcomes.DTYPE)
    start_s = np.full(size, state.totals.simulated_s)
    return Work(cohort, masks, load, timing, start_s, timing.total_s, outcome_of), memory


def _fitted(
    scenario: Scenario, state: ServerState, cohort: Cohort, masks: CohortMasks
) -> tuple[Cohort, CohortLoad, CohortTiming]:
    """Return load and timing of a cohort; late clients train fewer epochs where partial work is accepted."""

    def load_at(cohort: Cohort) -> CohortLoad:
        load = load_of(scenario, view_of(scenario, state, cohort), masks)
        return frozen.without_held(scenario, state.history, cohort.clients, masks, load)

    timing_of = partial(schedule_cohort, scenario)
    return fit_epochs(cohort, load_at, timing_of, scenario.clock, scenario.method.min_epochs)


def with_interruptions(scenario: Scenario, state: ServerState, work: Work) -> Work:
    """Return the work with the clients that stop before they are done."""
    return interrupted(work, scenario.workload.population.devices, state.history, scenario.workload.seed)
