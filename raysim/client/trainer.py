"""Trains a chunk of clients: each is cut, trained, added to the sums and scored, by itself or in a pack."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.client import evaluation, vmap
from raysim.client.assignments import Assignment, Assignments, Broadcast
from raysim.client.hooks import compose
from raysim.client.local_rules import own_classes_of, scaled_outputs, standing_hooks
from raysim.client.packing import places_of
from raysim.client.training import train
from raysim.client.update import add_reports, add_update, compressed, difference, update_of
from raysim.client.view import ClientView, Workload
from raysim.core import seeding
from raysim.core.errors import RunFailedError
from raysim.core.log import about
from raysim.core.tensors import Columns, Params, one_thread
from raysim.pruning import elements as element_masks
from raysim.pruning import submodel
from raysim.pruning.submodel import Cut
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import ClientUpdates
from raysim.task.task import ScoreSums


class ClientTrainer:
    """Plays clients, one after another or packed together; keeps the submodel skeletons it has built."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        model = workload.model if workload.device == "cpu" else copy.deepcopy(workload.model).to(workload.device)
        self._submodels = submodel.SubmodelCache(model, workload.plan)

    @property
    def workload(self) -> Workload:
        """What is held for the whole run."""
        return self._workload

    def train(self, assignments: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train a chunk of clients.

        Raises:
            RunFailedError: If a client's training diverges or raises; names round and client.
        """
        broadcast = _on_device(broadcast, self._workload.device)
        sums = {"update": ExactSum.zeros_like(broadcast.params)}
        trained: list[tuple[NDArray[np.int64], _Trained]] = []
        alone, packs = places_of(assignments.packs)
        with one_thread():
            for place in alone:
                trained.append((np.array([place]), self._train_one(assignments[int(place)], broadcast, sums)))
            for places in packs:
                trained.append((places, self._train_pack(assignments.take(places), broadcast, sums)))
        order = np.argsort(np.concatenate([places for places, _ in trained]))
        columns: Columns = {
            name: np.concatenate([result.columns[name] for _, result in trained])[order] for name in REPORTED
        }
        memories = {client: memory for _, result in trained for client, memory in result.memories.items()}
        return ClientUpdates(
            {name: total.on_cpu() for name, total in sums.items()},
            {"client": assignments.clients, **columns},
            kept=np.concatenate([result.kept for _, result in trained])[order],
            channel_sums=np.concatenate([result.channel_sums for _, result in trained])[order],
            memories=memories,
        )

    def _train_one(self, assignment: Assignment, broadcast: Broadcast, sums: dict[str, ExactSum]) -> "_Trained":
        seed, device, round, client = self._workload.seed, self._workload.device, broadcast.round, assignment.client
        with (
            about(round, [client]),
            _named(round, client),
            seeding.torch_seeded(seed, "layers", round, client, device),
        ):
            return train_client(self._workload, self._submodels, assignment, broadcast, sums)

    def _train_pack(self, assignments: Assignments, broadcast: Broadcast, sums: dict[str, ExactSum]) -> "_Trained":
        """Train clients together: as `train_client` does without rules of the method, on one mask for all."""
        workload, mask = self._workload, assignments.masks.distinct[0]
        local = replace(workload.local, epochs=int(assignments.epochs[0]))
        cut = submodel.cut_for(workload.plan, mask)
        model, start = self._submodels.module_for(mask, cut), submodel.extract_params(broadcast.params, cut)
        with self._blaming_one(assignments, broadcast):
            pack = vmap.pack_of(workload.data, assignments.clients, workload.population.train, workload.device)
            rate = local.learning_rate_in(broadcast.round)
            weights, losses = vmap.train_pack(
                model, start, pack, workload.task, local, rate, workload.seed, broadcast.round
            )
        for client, loss in zip(assignments.clients, losses, strict=True):
            _check_loss(broadcast.round, int(client), float(loss))
        with self._blaming_one(assignments, broadcast):
            memories = self._add_pack(sums, model, weights, start, cut, pack.counts, assignments, broadcast)
            metric, heldout_loss = self._score_pack(model, weights, assignments)
        values = (losses, assignments.epochs, metric, heldout_loss)
        return _Trained(
            dict(zip(REPORTED, values, strict=True)),
            kept=assignments.masks.kept,
            channel_sums=np.empty((len(assignments), 0, workload.plan.num_units)),
            memories=memories,
        )

    def _add_pack(
        self,
        sums: dict[str, ExactSum],
        model: nn.Module,
        weights: Params,
        start: Params,
        cut: Cut,
        rows: NDArray[np.int64],
        assignments: Assignments,
        broadcast: Broadcast,
    ) -> dict[int, Params]:
        """Add the updates of clients that were trained together; return what is remembered of each."""
        compression, memories = broadcast.rules.compression, {}
        if compression is None:
            sums["update"].add_pack(weights, start, cut, rows)
            return {}
        for place, assignment in enumerate(assignments):
            moved = {key: weights[key][place].double() - before.double() for key, before in start.items()}
            sent, memory = compressed(compression, moved, model, cut, {}, assignment, broadcast, self._workload.seed)
            sums["update"].add(sent, cut, int(rows[place]))
            if memory:
                memories[assignment.client] = memory
        return memories

    @contextmanager
    def _blaming_one(self, assignments: Assignments, broadcast: Broadcast) -> Iterator[None]:
        """Name the client of a pack that fails by itself, too."""
        try:
            with about(broadcast.round, assignments.clients.tolist()), _named(broadcast.round, -1):
                yield
        except RunFailedError:
            for assignment in assignments:
                self._train_one(assignment, broadcast, {"update": ExactSum.zeros_like(broadcast.params)})
            raise

    def _score_pack(
        self, model: nn.Module, weights: Params, assignments: Assignments
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return primary metric and mean loss on held-out rows, NaN for clients that have none or are not scored."""
        metric, loss = np.full((2, len(assignments)), np.nan)
        heldout, task = self._workload.population.heldout, self._workload.task
        scored = np.flatnonzero(assignments.scored & (heldout.counts_of(assignments.clients) > 0))
        if len(scored):
            pack = vmap.pack_of(self._workload.data, assignments.clients[scored], heldout, self._workload.device)
            own = {key: tensor[torch.from_numpy(scored).to(tensor.device)] for key, tensor in weights.items()}
            sums = vmap.score_each(task, model, own, pack)
            metric[scored] = [task.primary_of(each) for each in sums]
            loss[scored] = [each.mean_loss for each in sums]
        return metric, loss

    def score(self, params: Params, rows: NDArray[np.int64]) -> ScoreSums:
        """Return what scoring the global model on test rows comes to."""
        inputs, targets = moved(self._workload.data.test_rows(rows), self._workload.device)
        with one_thread():
            return evaluation.score(self._workload.task, self._global_model(params), inputs, targets)

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Return the global model's buffers, running statistics re-estimated on training rows."""
        model = self._global_model(params)
        pieces = np.array_split(rows, max(1, len(rows) // evaluation.BATCH))
        with one_thread():
            rows_of = (moved(self._workload.data.train_rows(piece), self._workload.device)[0] for piece in pieces)
            evaluation.estimate_statistics(model, rows_of)
        return {key: buffer.cpu() for key, buffer in evaluation.statistics_of(model).items()}

    def _global_model(self, params: Params) -> nn.Module:
        model = self._submodels.dense()
        submodel.load_params(model, params)
        return model


REPORTED = ("train_loss", "epochs", "accuracy", "heldout_loss")
"""What is reported of each client, NaN where it is not scored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    """What one client or a pack sends back, arrays `(clients, ...)`; see `ClientUpdates`."""

    columns: Columns
    kept: NDArray[np.bool_]
    channel_sums: NDArray[np.float64]
    memories: dict[int, Params]


@contextmanager
def _named(round: int, client: int) -> Iterator[None]:
    """Name round and client in whatever is raised."""
    try:
        yield
    except RunFailedError:
        raise
    except OverflowError as error:
        raise RunFailedError(round, client, f"training diverged: {error}") from None
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise RunFailedError(round, client, cause, traceback.format_exc()) from None


def _check_loss(round: int, client: int, loss: float) -> None:
    if not np.isfinite(loss):
        cause = f"training diverged: loss is {loss}; lower training.learning_rate"
        raise RunFailedError(round, client, cause)


def train_client(
    workload: Workload,
    submodels: submodel.SubmodelCache,
    assignment: Assignment,
    broadcast: Broadcast,
    sums: dict[str, ExactSum],
) -> _Trained:
    """Cut one client's submodel, train it, add its update to the sums, and score it."""
    rules, epochs = broadcast.rules, assignment.epochs
    order = seeding.generator(workload.seed, "batches", broadcast.round, assignment.client)
    view = _view_of(workload, submodels, assignment, broadcast)
    if rules.choose_locally is not None:
        view, trained_before = rules.choose_locally(view, order)
        epochs -= trained_before
    own_classes = own_classes_of(view)
    hooks = compose([*(hook(view) for hook in rules.hooks), *standing_hooks(view, own_classes)])
    local = replace(workload.local, epochs=epochs)
    with scaled_outputs(view.model, workload.plan, 1 / assignment.keep_ratio if rules.scale_by_keep_ratio else 1.0):
        trained = train(
            view.model,
            view.inputs,
            view.targets,
            workload.task,
            local,
            view.learning_rate,
            order,
            hooks,
            workload.data.augmented,
        )
    _check_loss(broadcast.round, assignment.client, trained.loss)
    reports = [finish() for finish in hooks.finish]
    update = update_of(view, own_classes)
    if hooks.received:
        received = difference(view) if update.values is None else update.values
        reports += [read(received) for read in hooks.received]
    add_update(sums, view, update)
    add_reports(sums, view, reports)
    metric, heldout_loss = _score_heldout(view)
    channel_sums = [report.channel_sums for report in reports if report.channel_sums is not None]
    found = np.concatenate(channel_sums) if channel_sums else np.empty((0, workload.plan.num_units))
    memory = update.memory | {key: value for report in reports for key, value in report.memory.items()}
    memory = {key: value.cpu() for key, value in memory.items()}
    values = (trained.loss, assignment.epochs - epochs + trained.epochs, metric, heldout_loss)
    return _Trained(
        {name: np.array([value]) for name, value in zip(REPORTED, values, strict=True)},
        kept=view.mask.kept[None],
        channel_sums=found[None],
        memories={assignment.client: memory} if memory else {},
    )


def on_device(params: Params, device: str) -> Params:
    """Return tensors on a device; those that are there already are passed on."""
    return params if device == "cpu" else {key: tensor.to(device) for key, tensor in params.items()}


def moved(rows: tuple[torch.Tensor, torch.Tensor], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets on a device."""
    return rows if device == "cpu" else (rows[0].to(device), rows[1].to(device))


def _on_device(broadcast: Broadcast, device: str) -> Broadcast:
    if device == "cpu":
        return broadcast
    return replace(
        broadcast, params=on_device(broadcast.params, device), extra=on_device(broadcast.extra, device)
    )  # fmt: skip


def _view_of(
    workload: Workload, submodels: submodel.SubmodelCache, assignment: Assignment, broadcast: Broadcast
) -> ClientView:
    """Cut the client's submodel and load the global values into it."""
    cut = submodel.cut_for(workload.plan, assignment.mask)
    elements = on_device(element_masks.of_submodel(assignment.mask, workload.plan.shapes, cut), workload.device)
    model = submodels.module_for(assignment.mask, cut)
    start = element_masks.apply(elements, submodel.extract_params(broadcast.params, cut))
    submodel.load_params(model, start)
    inputs, targets = moved(workload.data.train_rows(workload.population.train[assignment.client]), workload.device)
    if assignment.memory:
        assignment = replace(assignment, memory=on_device(assignment.memory, workload.device))
    return ClientView(
        workload, broadcast, assignment, submodels, model, assignment.mask, cut, elements, start, inputs, targets
    )  # fmt: skip


def _score_heldout(view: ClientView) -> tuple[float, float]:
    """Return primary metric and mean loss on the client's held-out rows, NaN where it has none or is not scored."""
    workload = view.workload
    rows = workload.population.heldout[view.assignment.client]
    if not view.assignment.score_heldout or len(rows) == 0:
        return float("nan"), float("nan")
    if view.broadcast.rules.static_norm:
        evaluation.estimate_statistics(view.model, [view.inputs])
    sums = evaluation.score(workload.task, view.model, *moved(workload.data.train_rows(rows), workload.device))
    return workload.task.primary_of(sums), sums.mean_loss
