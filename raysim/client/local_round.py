"""One client's part in a round: cut its submodel, train it, add its update to the sums, score it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from raysim.client import evaluation
from raysim.client.assignments import Assignment, Broadcast
from raysim.client.hooks import Report, compose
from raysim.client.local_rules import own_classes_of, scaled_outputs, standing_hooks
from raysim.client.pending import PendingUpdates
from raysim.client.training import train
from raysim.client.update import RESIDUAL, add_reports, add_update, counts_of, difference, update_of
from raysim.client.view import ClientView, Workload
from raysim.core import seeding
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.inputs import Inputs, each
from raysim.core.tensors import Columns, Params
from raysim.pruning import elements as element_masks
from raysim.pruning import submodel
from raysim.pruning.submodel import SubmodelCache
from raysim.server.fixed_point import ExactSum
from raysim.task.task import ScoreSums


@dataclass(frozen=True, slots=True, eq=False)
class LocalResults:
    """Results of one client or of a pack beside the sums, arrays `(clients, ...)`; see `ClientUpdates`."""

    columns: Columns
    kept: NDArray[np.bool_]
    channel_sums: NDArray[np.float64]
    memories: dict[int, Params]
    largest: Params


def train_client(
    workload: Workload,
    device: str,
    submodels: SubmodelCache,
    assignment: Assignment,
    broadcast: Broadcast,
    sums: dict[str, ExactSum],
    pending: PendingUpdates,
) -> LocalResults:
    """Cut one client's submodel, train it, add its update to the sums or to those that wait, and score it."""
    rules, epochs = broadcast.rules, assignment.epochs
    order = seeding.generator(workload.seed, "batches", broadcast.round, assignment.client)
    view = view_of(workload, device, submodels, assignment, broadcast)
    if rules.choose_locally is not None:
        view, trained_before = rules.choose_locally(view, order)
        epochs -= trained_before
    own_classes = own_classes_of(view)
    hooks = compose([*(hook(view) for hook in rules.hooks), *standing_hooks(view, own_classes)])
    local = replace(workload.local, epochs=epochs)
    scale = 1 / assignment.keep_ratio if rules.scale_by_keep_ratio else 1.0
    with scaled_outputs(view.model, workload.plan, scale):
        trained = train(
            view.model,
            view.inputs,
            view.targets,
            workload.task,
            local,
            view.learning_rate,
            order,
            hooks,
            view.augment,
        )
    check_loss(broadcast.round, assignment.client, trained.loss)
    reports = [finish() for finish in hooks.finish]
    update = update_of(view, own_classes)
    if hooks.received:
        received = difference(view) if update.values is None else update.values
        reports += [read(received) for read in hooks.received]
    trained_state = pending.taken(view) if update.values is None and pending.can_wait(view) else None
    if trained_state is None:
        add_update(sums, view, update)
    add_reports(sums, view, reports)
    score = _score_heldout(view)
    channel_sums = [report.channel_sums for report in reports if report.channel_sums is not None]
    found = np.concatenate(channel_sums) if channel_sums else np.empty((0, workload.plan.num_units))
    memory = _joined(update.memory, reports)
    epochs_done = assignment.epochs - epochs + trained.epochs
    results = LocalResults(
        reported([trained.loss], [epochs_done], workload, [score]),
        kept=view.mask.kept[None],
        channel_sums=found[None],
        memories={assignment.client: memory} if memory else {},
        largest=counts_of(dict(view.model.state_dict()), view.cut, broadcast.params),
    )
    if trained_state is not None:
        pending.add(view, trained_state)
    return results


def reported(losses: ArrayLike, epochs: ArrayLike, workload: Workload, scores: Sequence[ScoreSums | None]) -> Columns:
    """Return the columns that clients report, `(clients,)` each."""
    scored = evaluation.columns_of(workload.task, scores)
    return {"train_loss": np.asarray(losses), "epochs": np.asarray(epochs), **scored}


def _joined(compressions: Params, reports: Sequence[Report]) -> Params:
    """Return what is remembered of a client: by the compression and by the method.

    Raises:
        SettingError: If the method uses a name of the compression.
    """
    methods = {key: value for report in reports for key, value in report.memory.items()}
    for key in methods.keys() & compressions.keys():
        raise SettingError(
            f"method.name remembers {key!r} of a client, as the compression does; allowed: names that do not begin "
            f"with {RESIDUAL!r}"
        )
    return compressions | methods


def on_device(params: Params, device: str) -> Params:
    """Return tensors on a device; on the CPU they are passed on as they are."""
    return params if device == "cpu" else {key: tensor.to(device) for key, tensor in params.items()}


def moved(rows: tuple[Inputs, torch.Tensor], device: str) -> tuple[Inputs, torch.Tensor]:
    """Return inputs and targets on a device."""
    return rows if device == "cpu" else (each(lambda tensor: tensor.to(device), rows[0]), rows[1].to(device))


def received_on(broadcast: Broadcast, device: str) -> Broadcast:
    """Return what clients receive, its tensors on a device."""
    if device == "cpu":
        return broadcast
    return replace(broadcast, params=on_device(broadcast.params, device), extra=on_device(broadcast.extra, device))


def view_of(
    workload: Workload, device: str, submodels: SubmodelCache, assignment: Assignment, broadcast: Broadcast
) -> ClientView:
    """Cut a client's submodel, load the global values into it, and return the client's view."""
    cut = submodel.cut_for(workload.plan, assignment.mask)
    elements = on_device(element_masks.of_submodel(assignment.mask, workload.plan.shapes, cut), device)
    model = submodels.module_for(assignment.mask, cut)
    start = element_masks.apply(elements, submodel.extract_params(broadcast.params, cut))
    submodel.load_params(model, start)
    inputs, targets = moved(workload.data.train_rows(workload.population.train[assignment.client]), device)
    if assignment.memory:
        assignment = replace(assignment, memory=on_device(assignment.memory, device))
    augment = workload.data.augmenter(workload.seed, broadcast.round, assignment.client)
    return ClientView(
        workload,
        broadcast,
        assignment,
        submodels,
        model,
        assignment.mask,
        cut,
        elements,
        start,
        inputs,
        targets,
        augment,
    )


def _score_heldout(view: ClientView) -> ScoreSums | None:
    """Score a client's submodel on its held-out rows; None: it has none, or is not scored."""
    workload = view.workload
    rows = workload.population.heldout[view.assignment.client]
    if not view.assignment.score_heldout or len(rows) == 0:
        return None
    memory_format, has_further = workload.local.memory_format, bool(workload.task.of_clients)
    if view.broadcast.rules.static_norm:
        evaluation.estimate_statistics(view.model, [view.inputs], memory_format)
    inputs, targets = moved(workload.data.train_rows(rows), view.targets.device.type)
    return evaluation.score(workload.task, view.model, inputs, targets, has_further, memory_format)


def check_loss(round: int, client: int, loss: float) -> None:
    """Raise RunFailedError if a client's training has diverged."""
    if not np.isfinite(loss):
        cause = f"training diverged: loss is {loss}; lower training.learning_rate"
        raise RunFailedError(round, client, cause)
