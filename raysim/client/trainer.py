"""Train a chunk of clients, one after another or packed together, and score the global model."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.client import evaluation, vmap
from raysim.client.assignments import Assignment, Assignments, Broadcast
from raysim.client.evaluation import Split
from raysim.client.local_round import LocalResults, check_loss, moved, received_on, reported, train_client
from raysim.client.naming import named
from raysim.client.packing import split_packs
from raysim.client.pending import PendingUpdates
from raysim.client.update import compressed, counts_of
from raysim.client.view import Workload
from raysim.core import seeding
from raysim.core.errors import RunFailedError
from raysim.core.log import about
from raysim.core.tensors import Columns, Params, floating, frozen_keys, one_thread
from raysim.pruning import elements as element_masks
from raysim.pruning import submodel
from raysim.pruning.masks import Mask
from raysim.pruning.submodel import Cut
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import ClientUpdates, largest_of
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
        self._frozen = frozen_keys(model)

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
        sums = self._empty_sums(broadcast)
        results: list[LocalResults] = []
        alone, packs = split_packs(assignments.packs)
        with one_thread():
            with PendingUpdates(sums["update"], self._submodels) as pending:
                for index in alone.tolist():
                    results.append(self._train_one(assignments[index], broadcast, sums, pending))
            for members in packs:
                results.append(self._train_pack(assignments.take(members), broadcast, sums))
        order = np.argsort(np.concatenate([alone, *packs]))
        columns: Columns = {
            name: np.concatenate([each.columns[name] for each in results])[order] for name in results[0].columns
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
            largest=largest_of(each.largest for each in results),
        )

    def _empty_sums(self, broadcast: Broadcast) -> dict[str, ExactSum]:
        return {"update": ExactSum.zeros_like(self._sent(broadcast.params))}

    def _sent(self, params: Params) -> Params:
        """Return the tensors that clients send back."""
        return {key: tensor for key, tensor in floating(params).items() if key not in self._frozen}

    def _train_one(
        self, assignment: Assignment, broadcast: Broadcast, sums: dict[str, ExactSum], pending: PendingUpdates
    ) -> LocalResults:
        seed, round, client = self._workload.seed, broadcast.round, assignment.client
        with (
            about(round, [client]),
            named(round, client),
            seeding.torch_seeded(seed, "layers", round, client, self._device),
        ):
            return train_client(self._workload, self._device, self._submodels, assignment, broadcast, sums, pending)

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
            scores = self._score_pack(model, weights, assignments)
        largest = {key: tensor.amax(0) for key, tensor in weights.items() if not tensor.is_floating_point()}
        return LocalResults(
            reported(losses, assignments.epochs, workload, scores),
            kept=assignments.masks.kept,
            channel_sums=np.empty((len(assignments), 0, workload.plan.num_units)),
            memories=memories,
            largest=counts_of(largest, cut, broadcast.params),
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
            sums["update"].add_pack(weights, self._sent(start), cut, rows)
            return {}
        for index, assignment in enumerate(assignments):
            before = self._sent(start)
            update = {key: weights[key][index].double() - value.double() for key, value in before.items()}
            sent, memory = compressed(compression, update, model, cut, {}, assignment, broadcast, self._workload.seed)
            sums["update"].add(sent, cut, int(rows[index]))
            if memory:
                memories[assignment.client] = memory
        return memories

    @contextmanager
    def _blaming_one(self, assignments: Assignments, broadcast: Broadcast) -> Iterator[None]:
        """Where a pack fails, train its clients one by one, so that the error names the client that fails."""
        try:
            with about(broadcast.round, assignments.clients.tolist()), named(broadcast.round, -1):
                yield
        except RunFailedError:
            for assignment in assignments:
                sums = self._empty_sums(broadcast)
                with PendingUpdates(sums["update"], self._submodels) as pending:
                    self._train_one(assignment, broadcast, sums, pending)
            raise

    def _score_pack(self, model: nn.Module, weights: Params, assignments: Assignments) -> list[ScoreSums | None]:
        """Score each client on its held-out rows; None: it has none, or is not scored."""
        scores: list[ScoreSums | None] = [None] * len(assignments)
        heldout, task = self._workload.population.heldout, self._workload.task
        scored = np.flatnonzero(assignments.scored & (heldout.counts_of(assignments.clients) > 0))
        if len(scored):
            pack = vmap.pack_of(self._workload.data, assignments.clients[scored], heldout, self._device)
            own = {key: tensor[torch.from_numpy(scored).to(tensor.device)] for key, tensor in weights.items()}
            for index, sums in zip(scored, vmap.score_each(task, model, own, pack), strict=True):
                scores[index] = sums
        return scores

    def score(
        self, params: Params, rows: NDArray[np.int64], split: Split = "test", mask: Mask | None = None
    ) -> ScoreSums:
        """Score the global model, or its submodel, on test or validation rows; return sums over the rows."""
        data = self._workload.data
        inputs, targets = moved((data.test_rows if split == "test" else data.train_rows)(rows), self._device)
        seed = seeding.torch_seeded(self._workload.seed, "score", client=int(rows[0]), device=self._device)
        with one_thread(), seed:  # a user's layer may draw in evaluation, too
            model, _ = self._model_of(params, mask)
            task, memory_format = self._workload.task, self._workload.local.memory_format
            return evaluation.score(task, model, inputs, targets, mask is None, memory_format)

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64], mask: Mask | None = None) -> Params:
        """Re-estimate running statistics on training rows, and return the global model's buffers.

        With a mask, they are those of the submodel; entries that it does not hold keep their value.
        """
        model, cut = self._model_of(params, mask)
        pieces = np.array_split(rows, max(1, len(rows) // evaluation.BATCH))
        seed = seeding.torch_seeded(self._workload.seed, "statistics", device=self._device)
        with one_thread(), seed:
            rows_of = (moved(self._workload.data.train_rows(piece), self._device)[0] for piece in pieces)
            evaluation.estimate_statistics(model, rows_of, self._workload.local.memory_format)
        found = {key: buffer.cpu() for key, buffer in evaluation.statistics_of(model).items()}
        return submodel.reconstruct(found, cut, {key: params[key] for key in found}) if cut else found

    def _model_of(self, params: Params, mask: Mask | None) -> tuple[nn.Module, Cut]:
        """Return the global model, or the submodel of a mask, with its cut."""
        if mask is None:
            model, cut = self._submodels.dense(), Cut()
            submodel.load_params(model, params)
            return model, cut
        cut = submodel.cut_for(self._workload.plan, mask)
        model = self._submodels.module_for(mask, cut)
        elements = element_masks.of_submodel(mask, self._workload.plan.shapes, cut)
        submodel.load_params(model, element_masks.apply(elements, submodel.extract_params(params, cut)))
        return model, cut
