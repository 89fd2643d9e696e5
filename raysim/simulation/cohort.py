"""Who takes part, with what submodel, and what that transfers, computes and takes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.budgets.rules import Budgets, budgets_of_tiers
from raysim.budgets.solver import TOLERANCE
from raysim.client.assignments import ALONE, Assignments
from raysim.clock.timing import CohortLoad, CohortTiming, schedule
from raysim.clock.work import Cohort
from raysim.core import seeding
from raysim.core.tensors import Params
from raysim.data.batches import num_batches
from raysim.methods import resolve as methods
from raysim.methods.method import RoundView
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks, Mask
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import ServerState


def with_method(scenario: Scenario, state: ServerState, cohort: Cohort) -> Cohort:
    """Let the method choose widths and epochs, where they depend on more than the device."""
    method, view = scenario.method, view_of(scenario, state, cohort)
    if method.widths is not None:
        limited_by = np.full(len(cohort.clients), "method")
        cohort = replace(cohort, keep_ratios=method.widths(view), limited_by=limited_by)
    if method.work is not None:
        cohort = replace(cohort, epochs=method.work(view))
    return cohort


def cohort_of(scenario: Scenario, clients: NDArray[np.int64], round: int) -> Cohort:
    """Return some clients with what the method trains of what they can afford.

    One that can afford no submodel of the method has keep ratio 0, and what forbids it in `limited_by`.
    """
    can_afford = affordable(scenario, clients, round)
    trained = scenario.method.budget(can_afford.keep_ratios)
    if scenario.budget is not None:
        trained = np.where(trained > can_afford.keep_ratios + TOLERANCE, 0.0, trained)
    return Cohort(
        round,
        clients,
        budgets=trained,
        keep_ratios=trained,
        limited_by=np.where(trained < 1, can_afford.limited_by, "nothing"),
        examples=scenario.workload.population.train.counts_of(clients),
        epochs=np.full(len(clients), scenario.workload.local.epochs),
    )


def feasible(cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Split a cohort into those that can afford a submodel of the method and those that cannot."""
    able = cohort.keep_ratios > 0
    return cohort.take(able), cohort.take(~able)


def affordable(scenario: Scenario, clients: NDArray[np.int64], round: int) -> Budgets:
    """Return what some clients can afford in a round."""
    population, seed = scenario.workload.population, scenario.workload.seed
    devices = population.devices.of(clients)
    if scenario.budget is None:
        return budgets_of_tiers(devices)
    return scenario.budget.solve(devices, clients, population.train.counts_of(clients), round, seed)


def view_of(scenario: Scenario, state: ServerState, cohort: Cohort) -> RoundView:
    """Return what the method may look at."""
    workload = scenario.workload
    return RoundView(
        workload.plan, scenario.costs, workload.local, scenario.method.options, workload.seed,
        num_clients=len(workload.population),
        num_examples=scenario.num_examples,
        devices=workload.population.devices,
        round=cohort.round,
        clients=cohort.clients,
        examples=cohort.examples,
        budgets=cohort.budgets,
        keep_ratios=cohort.keep_ratios,
        epochs=cohort.epochs,
        params=state.params,
        memory=state.memory,
        client_memory=state.clients,
        update_bytes=partial(methods.update_bytes, scenario.method, scenario.costs),
    )  # fmt: skip


def choose_masks(scenario: Scenario, view: RoundView) -> tuple[CohortMasks, Params]:
    """Rank the channels and keep, for each client, as many of the best as its budget allows."""
    scores, memory = methods.rank(scenario.method, view)
    return methods.choose_masks(scenario.method, view, scores), memory


def load_of(scenario: Scenario, view: RoundView, masks: CohortMasks) -> CohortLoad:
    """Count what each client transfers and computes for its own submodel."""
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
    """Return the bytes that travel down and up for one client.

    Down: the submodel and, where it is cut, one bit per channel that tells which; for masks of single entries
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


def assignments_of(
    scenario: Scenario, cohort: Cohort, masks: CohortMasks, load: CohortLoad, memory: Mapping[int, Params]
) -> Assignments:
    """Return the clients' assignments; a share of them, drawn from the seed, is scored on held-out rows."""
    method = scenario.method
    is_read = method.sends_memory or method.objective.sends_memory or method.rules.remembers_updates
    memory = memory if is_read else {}
    return Assignments(
        cohort.clients, masks, cohort.budgets, cohort.keep_ratios, cohort.epochs, scored_clients(scenario, cohort),
        load.train_flops.astype(np.float64), np.full(len(cohort.clients), ALONE), memories_of(memory, cohort.clients),
    )  # fmt: skip


def memories_of(memory: Mapping[int, Params], clients: NDArray[np.int64]) -> dict[int, Params]:
    """Return what is remembered of those of some clients of whom something is."""
    return {client: memory[client] for client in clients.tolist() if client in memory} if memory else {}


def scored_clients(scenario: Scenario, cohort: Cohort) -> NDArray[np.bool_]:
    """Return which clients score their submodels, `(cohort,)`: a share of them, of asynchronous ones in the mean."""
    seed, size = scenario.workload.seed, len(cohort.clients)
    if scenario.clock.mode == "async":
        drawn = seeding.uniform(seed, "scored clients", cohort.round, cohort.clients)[0]
        return np.asarray(drawn < scenario.scored_share)
    scored = np.zeros(size, dtype=np.bool_)
    rng = seeding.generator(seed, "scored clients", cohort.round)
    scored[rng.permutation(size)[: round(size * scenario.scored_share)]] = True
    return scored


def classes_owned(scenario: Scenario, cohort: Cohort) -> NDArray[np.bool_] | None:
    """Return which classes each client has training rows of, where the method looks at that."""
    if not scenario.method.rules.own_classes_only:
        return None
    data, train = scenario.workload.data, scenario.workload.population.train
    own = scenario.workload.task.own_classes_for("own_classes_only=True")
    targets = (torch.from_numpy(data.train_labels[train[client]]) for client in cohort.clients)
    return np.stack([own.owned(each, data.num_classes).numpy() for each in targets])
