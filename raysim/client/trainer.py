"""Train a chunk of clients, one after another or packed together, and score the global model."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.client import evaluation, vmap
from raysim.client.assignments import Assignment, Assignments, Broadcast
from raysim.client.local_round import REPORTED, LocalResults, check_loss, moved, received_on, train_client
from raysim.client.packing import split_packs
from raysim.client.update import compressed
from raysim.client.view import Workload
from raysim.core import seeding
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.log import about
from raysim.core.tensors import Columns, Params, one_thread
from raysim.pruning import submodel
from raysim.pruning.submodel import Cut
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import ClientUpdates
from raysim.task.task import ScoreSums


class ClientTrainer:
    """Trains clients, one after another or packed together; keeps the submodel skeletons it has built."""

    def __init__(self, workload: Workload, device: str = "cpu") -> None:
        """Prepare for a run.

        Args:
            workload: The run's data, model and training settings.
            device: PyTorch's name of the device that trains clients, `cpu` or `cuda`.
        """
        self._workload, self._device = workload, device
        model = workload.model if device == "cpu" else copy.deepcopy(workload.model).to(device)
        self._submodels = submodel.SubmodelCache(model, workload.plan)

    @property
    def workload(self) -> Workload:
        """The run's data, model and training settings."""
        return self._workload

    def train(self, assignments: Assignments, broadcast: Broadcast) -> ClientUpdates:
        """Train a chunk of clients.

        Raises:
            RunFailedError: If a client's training diverges or raises; it names round and client.
        """
        broadcast = received_on(broadcast, self._device)
        sums = {"update": ExactSum.zeros_like(broadcast.params)}
        results: list[LocalResults] = []
        alone, packs = split_packs(assignments.packs)
        with one_thread():
            for index in alone.tolist():
                results.append(self._train_one(assignments[index], broadcast, sums))
            for members in packs:
                results.append(self._train_pack(assignments.take(members), broadcast, sums))
        order = np.argsort(np.concatenate([alone, *packs]))
        columns: Columns = {
            name: np.concatenate([each.columns[name] for each in results])[order] for name in REPORTED
        }
        memories = {  # in main memory: the driver has no GPU
            client: {key: tensor.cpu() for key, tensor in memory.items()}
            for each in results
            for client, memory in each.memories.items()
        }
        return ClientUpdates(
            {name: total.on_cpu() for name, total in sums.items()},
            {"client": assignments.clients, **columns},
            kept=np.concatenate([each.kept for each in results])[order],
            channel_sums=np.concatenate([each.channel_sums for each in results])[order],
            memories=memories,
        )

    def _train_one(self, assignment: Assignment, broadcast: Broadcast, sums: dict[str, ExactSum]) -> LocalResults:
        seed, round, client = self._workload.seed, broadcast.round, assignment.client
        with (
            about(round, [client]),
            _named(round, client),
            seeding.torch_seeded(seed, "layers", round, client, self._device),
        ):
            return train_client(self._workload, self._device, self._submodels, assignment, broadcast, sums)

    def _train_pack(self, assignments: Assignments, broadcast: Broadcast, sums: dict[str, ExactSum]) -> LocalResults:
        """Train clients of one mask together; the method has no local rules."""
        workload, mask = self._workload, assignments.masks.distinct[0]
        local = replace(workload.local, epochs=int(assignments.epochs[0]))
        cut = submodel.cut_for(workload.plan, mask)
        model, start = self._submodels.module_for(mask, cut), submodel.extract_params(broadcast.params, cut)
        with self._blaming_one(assignments, broadcast):
            pack = vmap.pack_of(workload.data, assignments.clients, workload.population.train, self._device)
            rate = local.learning_rate_in(broadcast.round)
            weights, losses = vmap.train_pack(
                model, start, pack, workload.task, local, rate, workload.seed, broadcast.round
            )
        for client, loss in zip(assignments.clients, losses, strict=True):
            check_loss(broadcast.round, int(client), float(loss))
        with self._blaming_one(assignments, broadcast):
            memories = self._add_pack(sums, model, weights, start, cut, pack.counts, assignments, broadcast)
            metric, heldout_loss = self._score_pack(model, weights, assignments)
        values = (losses, assignments.epochs, metric, heldout_loss)
        return LocalResults(
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
        """Add the updates of a pack to the sums; return what each client remembers, by id."""
        compression, memories = broadcast.rules.compression, {}
        if compression is None:
            sums["update"].add_pack(weights, start, cut, rows)
            return {}
        for index, assignment in enumerate(assignments):
            update = {key: weights[key][index].double() - before.double() for key, before in start.items()}
            sent, memory = compressed(compression, update, model, cut, {}, assignment, broadcast, self._workload.seed)
            sums["update"].add(sent, cut, int(rows[index]))
            if memory:
                memories[assignment.client] = memory
        return memories

    @contextmanager
    def _blaming_one(self, assignments: Assignments, broadcast: Broadcast) -> Iterator[None]:
        """Where a pack fails, train its clients one by one, so that the error names the client that fails."""
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
        """Return primary metric and mean loss on held-out rows; NaN for clients that have none or are not scored."""
        metric, loss = np.full((2, len(assignments)), np.nan)
        heldout, task = self._workload.population.heldout, self._workload.task
        scored = np.flatnonzero(assignments.scored & (heldout.counts_of(assignments.clients) > 0))
        if len(scored):
            pack = vmap.pack_of(self._workload.data, assignments.clients[scored], heldout, self._device)
            own = {key: tensor[torch.from_numpy(scored).to(tensor.device)] for key, tensor in weights.items()}
            sums = vmap.score_each(task, model, own, pack)
            metric[scored] = [task.primary_of(each) for each in sums]
            loss[scored] = [each.mean_loss for each in sums]
        return metric, loss

    def score(self, params: Params, rows: NDArray[np.int64]) -> ScoreSums:
        """Score the global model on test rows; return sums over the rows."""
        inputs, targets = moved(self._workload.data.test_rows(rows), self._device)
        with one_thread():
            return evaluation.score(self._workload.task, self._global_model(params), inputs, targets)

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Re-estimate running statistics on training rows, and return the global model's buffers."""
        model = self._global_model(params)
        pieces = np.array_split(rows, max(1, len(rows) // evaluation.BATCH))
        with one_thread():
            rows_of = (moved(self._workload.data.train_rows(piece), self._device)[0] for piece in pieces)
            evaluation.estimate_statistics(model, rows_of)
        return {key: buffer.cpu() for key, buffer in evaluation.statistics_of(model).items()}

    def _global_model(self, params: Params) -> nn.Module:
        model = self._submodels.dense()
        submodel.load_params(model, params)
        return model


@contextmanager
def _named(round: int, client: int) -> Iterator[None]:
    """Turn any error into a RunFailedError that names round and client."""
    try:
        yield
    except RunFailedError:
        raise
    except SettingError as error:
        raise RunFailedError(round, client, str(error)) from None
    except OverflowError as error:
        raise RunFailedError(round, client, f"training diverged: {error}") from None
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise RunFailedError(round, client, cause, traceback.format_exc()) from None
