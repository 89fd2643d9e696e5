"""Cut, train, put back, accumulate: what an executor runs for a chunk of clients."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim import evaluation, seeding
from raysim.data.datasets import Dataset
from raysim.errors import RunFailedError
from raysim.exact_sum import ExactSum
from raysim.pruning import submodel
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.significance import FORMS, gradient_and_curvature_sums
from raysim.training import GradientMoments, LocalTraining, effective_steps, one_thread, train
from raysim.types import ClientTask, Columns, LocalRules, Params, Population


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """All a stage holds for a whole run; it travels to every actor once."""

    seed: int
    data: Dataset
    population: Population
    model: nn.Module
    plan: ChannelPlan
    local: LocalTraining
    rules: LocalRules


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What a chunk of clients sends back.

    Attributes:
        sums: Exact sums over the clients: `update` of n_k D_k, and for the variation estimator `gradient` of
            n_k g_k and `squared_gradient` of n_k g_k^2.
        clients: One row per client: `client`, `train_loss`, `accuracy` and `heldout_loss` (NaN if not scored).
        channel_sums: For the fisher estimator, sums of g w and h w^2 per client and channel,
            `(clients, 2, num_units)`; else empty.
    """

    sums: dict[str, ExactSum]
    clients: Columns
    channel_sums: NDArray[np.float64]


def merge(contributions: Sequence[Contribution]) -> Contribution:
    """Add up contributions; the result does not depend on their order or on who is in which."""
    sums = {name: ExactSum.zeros_like(total.totals) for name, total in contributions[0].sums.items()}
    for contribution in contributions:
        for name, total in contribution.sums.items():
            sums[name].merge(total)
    by_id = np.argsort(np.concatenate([contribution.clients["client"] for contribution in contributions]))
    names = contributions[0].clients
    clients = {name: np.concatenate([c.clients[name] for c in contributions])[by_id] for name in names}
    return Contribution(sums, clients, np.concatenate([c.channel_sums for c in contributions])[by_id])


class Stage:
    """Plays clients one after another; keeps the submodel skeletons it has built."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._submodels = submodel.SubmodelCache(workload.model, workload.plan)

    def train(self, tasks: Sequence[ClientTask], params: Params, round: int) -> Contribution:
        """Train a chunk of clients.

        Raises:
            RunFailedError: If a client's training diverges or raises; names round and client.
        """
        sums = {"update": ExactSum.zeros_like(params)}
        if self._workload.rules.estimator == "variation":
            trained = trainable(self._workload.model, params)
            sums |= {name: ExactSum.zeros_like(trained) for name in ("gradient", "squared_gradient")}
        with one_thread():
            results = [self._train_one(task, params, round, sums) for task in tasks]
        columns: Columns = {
            "client": np.array([task.client for task in tasks], dtype=np.int64),
            "train_loss": np.array([result.train_loss for result in results]),
            "accuracy": np.array([result.accuracy for result in results]),
            "heldout_loss": np.array([result.heldout_loss for result in results]),
        }
        return Contribution(sums, columns, np.stack([result.channel_sums for result in results]))

    def _train_one(self, task: ClientTask, params: Params, round: int, sums: dict[str, ExactSum]) -> "_Result":
        try:
            with seeding.torch_seeded(self._workload.seed, "layers", round, task.client):
                return _play(self._workload, self._submodels, task, params, round, sums)
        except RunFailedError:
            raise
        except OverflowError as error:
            raise RunFailedError(round, task.client, f"training diverged: {error}") from None
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise RunFailedError(round, task.client, cause, traceback.format_exc()) from None

    def score(self, params: Params, rows: NDArray[np.int64]) -> tuple[int, float]:
        """Return correct answers and summed loss of the global model on test rows."""
        inputs, labels = self._workload.data.test_rows(rows)
        with one_thread():
            return evaluation.count_correct(self._global_model(params), inputs, labels)

    def estimate_statistics(self, params: Params, rows: NDArray[np.int64]) -> Params:
        """Return the global model's buffers, running statistics re-estimated on training rows."""
        model = self._global_model(params)
        pieces = np.array_split(rows, max(1, len(rows) // evaluation.BATCH))
        with one_thread():
            evaluation.estimate_statistics(model, (self._workload.data.train_rows(piece)[0] for piece in pieces))
        return evaluation.statistics_of(model)

    def _global_model(self, params: Params) -> nn.Module:
        model = self._submodels.dense()
        submodel.load_params(model, params)
        return model


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    train_loss: float
    accuracy: float
    heldout_loss: float
    channel_sums: NDArray[np.float64]


def _play(
    workload: Workload, submodels: submodel.SubmodelCache, task: ClientTask, params: Params, round: int,
    sums: dict[str, ExactSum],
) -> _Result:  # fmt: skip
    """Play one client: cut its submodel, train it, add its update to the sums, score it."""
    plan, rules, local = workload.plan, workload.rules, workload.local
    cut = submodel.cut_for(plan, task.mask)
    compact = submodel.extract_params(params, cut)
    model = submodels.module_for(task.mask, cut)
    submodel.load_params(model, compact)
    rows = workload.population.train[task.client]
    inputs, labels = workload.data.train_rows(rows)
    classes = _classes_of(labels, workload.data.num_classes) if rules.own_classes_only else None

    moments = GradientMoments() if rules.estimator == "fisher" else None
    order = seeding.generator(workload.seed, "batches", round, task.client)
    rate = local.learning_rate_in(round)
    with scaled_outputs(model, plan, 1 / task.keep_ratio if rules.scale_by_keep_ratio else 1.0):
        loss_function = nn.functional.cross_entropy if classes is None else partial(_loss_of_classes, classes)
        train_loss = train(model, inputs, labels, local, rate, order, loss_function, moments)
    if not np.isfinite(train_loss):
        raise RunFailedError(
            round, task.client, f"training diverged: loss is {train_loss}; lower training.learning_rate"
        )

    _accumulate(sums, _difference(model, compact, plan, classes), model, workload, round, cut, len(rows))
    channel_sums = np.empty((0, plan.num_units))
    if moments is not None:
        channel_sums = _channel_sums(moments, model, compact, cut, plan, rules)
    accuracy, heldout_loss = _score_heldout(workload, task, model, inputs)
    return _Result(train_loss, accuracy, heldout_loss, channel_sums)


def _accumulate(
    sums: dict[str, ExactSum], update: Params, model: nn.Module, workload: Workload, round: int,
    cut: submodel.Cut, num_examples: int,
) -> None:  # fmt: skip
    """Add a client's update, weighted with its examples, and what the variation estimator makes of it."""
    sums["update"].add(update, cut, num_examples)
    if workload.rules.estimator == "variation":
        local = workload.local
        steps = effective_steps(local.num_steps(num_examples), local.momentum)
        scale = -1 / (local.learning_rate_in(round) * steps)
        gradient = {key: delta * scale for key, delta in trainable(model, update).items()}
        sums["gradient"].add(gradient, cut, num_examples)
        sums["squared_gradient"].add({key: g**2 for key, g in gradient.items()}, cut, num_examples)


def _channel_sums(
    moments: GradientMoments, model: nn.Module, weights: Params, cut: submodel.Cut, plan: ChannelPlan,
    rules: LocalRules,
) -> NDArray[np.float64]:  # fmt: skip
    """Return what the fisher estimator asks of a client: its channels' sums of g w and h w^2."""
    gradient, curvature = moments.means(model)
    sums = gradient_and_curvature_sums(
        plan, FORMS[rules.score_form], weights, gradient, curvature, cut, rules.include_consumers
    )
    if not np.isfinite(sums).all():
        raise OverflowError("the channel sums of its gradients are not finite")
    return sums


def trainable(model: nn.Module, tensors: Params) -> Params:
    """Return the tensors that belong to parameters with a gradient: no buffers, nothing frozen."""
    return {name: tensors[name] for name, parameter in model.named_parameters() if parameter.requires_grad}


def _classes_of(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    owned = torch.zeros(num_classes, dtype=torch.bool)
    owned[labels] = True
    return owned


def _loss_of_classes(owned: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.masked_fill(~owned, 0), labels)


@contextmanager
def scaled_outputs(model: nn.Module, plan: ChannelPlan, factor: float) -> Iterator[None]:
    """Multiply the output of every layer whose channels are cut, while the context lasts (HeteroFL's scaler)."""
    if factor == 1.0:
        yield
        return

    def scale(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * factor

    keys = [slot.key for _, slot in plan.slots() if slot.role == "weight" and len(plan.shapes[slot.key]) > 1]
    layers = [model.get_submodule(key.rsplit(".", 1)[0]) for key in keys]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(model: nn.Module, before: Params, plan: ChannelPlan, classes: torch.Tensor | None) -> Params:
    """Return after minus before in float64, zero in classifier rows the client may not change."""
    update = {key: after.double() - before[key].double() for key, after in model.state_dict().items()}
    if classes is not None and plan.outputs is not None:
        for slot in plan.outputs.slots:
            update[slot.key][~classes] = 0
    return update


def _score_heldout(
    workload: Workload, task: ClientTask, model: nn.Module, train_inputs: torch.Tensor
) -> tuple[float, float]:
    rows = workload.population.heldout[task.client]
    if not task.score_heldout or len(rows) == 0:
        return float("nan"), float("nan")
    if workload.rules.static_norm:
        evaluation.estimate_statistics(model, [train_inputs])
    inputs, labels = workload.data.train_rows(rows)
    correct, loss = evaluation.count_correct(model, inputs, labels)
    return correct / len(rows), loss / len(rows)
