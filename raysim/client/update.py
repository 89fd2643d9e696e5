"""Compute the update that a client sends, compress it, and add it to the sums of its chunk."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from raysim.client.assignments import Assignment, Broadcast
from raysim.client.compression import Compression
from raysim.client.hooks import Report
from raysim.client.view import ClientView
from raysim.core import seeding
from raysim.core.tensors import Params, frozen_keys
from raysim.pruning import elements as element_masks
from raysim.pruning import submodel
from raysim.pruning.submodel import Cut
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import spread_out

RESIDUAL = "residual/"
"""Prefix of a client's tensors that a compression remembers, such as the residual of error feedback."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Update of one client.

    Attributes:
        values: Values in the submodel's coordinates, float64; None: after minus before, not computed yet.
        memory: State that the client's compression keeps for its next update.
    """

    values: Params | None = None
    memory: Params = field(default_factory=dict)


def update_of(view: ClientView, own_classes: torch.Tensor | None) -> Update:
    """Return the update of a client that has trained its submodel.

    Args:
        view: The client.
        own_classes: Which rows of the classifier it may change, `(classes,)`; None: all.
    """
    compression, seed = view.broadcast.rules.compression, view.workload.seed
    if own_classes is None and not view.elements and compression is None:
        return Update()
    values = element_masks.apply(view.elements, difference(view, own_classes))
    if compression is None:
        return Update(values)
    sent, memory = compressed(
        compression, values, view.model, view.cut, view.elements, view.assignment, view.broadcast, seed
    )
    return Update(_of_own_classes(sent, view, own_classes), memory)


def difference(view: ClientView, own_classes: torch.Tensor | None = None) -> Params:
    """Return after minus before in float64, zero in rows of the classifier that the client may not change.

    Frozen tensors are not read, since most of a large model may be frozen: they are one zero, expanded.
    """
    zero, frozen = torch.zeros((), dtype=torch.float64), frozen_keys(view.model)
    update = {
        key: zero.to(after.device).expand(after.shape) if key in frozen else after.double() - view.start[key].double()
        for key, after in view.model.state_dict().items()
    }
    return _of_own_classes(update, view, own_classes)


def _of_own_classes(update: Params, view: ClientView, own_classes: torch.Tensor | None) -> Params:
    """Return an update with zeros in rows of the classifier that the client may not change."""
    outputs = view.workload.plan.outputs
    if own_classes is None or outputs is None:
        return update
    others = torch.nonzero(~own_classes).flatten()
    return update | {slot.key: update[slot.key].index_fill(0, others, 0) for slot in outputs.slots}


def compressed(
    compression: Compression,
    values: Params,
    model: nn.Module,
    cut: Cut,
    elements: Params,
    assignment: Assignment,
    broadcast: Broadcast,
    seed: int,
) -> tuple[Params, Params]:
    """Return an update as the server receives it, and what the client remembers of it.

    The client's memory is in the full model's coordinates; only the entries that its mask keeps in this round are
    used and changed.

    Args:
        compression: How it is compressed.
        values: The update in the submodel's coordinates, zero where single entries are pruned.
        model: The submodel.
        cut: The kept indices of each tensor of the full model.
        elements: Which of its entries are kept, by key; tensors without an entry are whole.
        assignment: The client, and what is remembered of it.
        broadcast: The global parameters, and the round.
        seed: Seed of the experiment.

    Raises:
        OverflowError: If an entry is not finite.
        SettingError: If a compression of the user's own returns what is not allowed.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = entries_of({name: values[name] for name in names.values()}, elements)
    if not all(bool(torch.isfinite(found).all()) for found in moved.values()):
        raise OverflowError("its update is not finite")
    remembered: Params = {}
    if compression.remembers:
        remembered = {name: _residual(name, assignment, broadcast) for name in moved}
    held = submodel.extract_params(remembered, cut)
    generator = seeding.generator(seed, "compression", broadcast.round, assignment.client)
    sent, left = compression.compress(moved, entries_of(held, elements), generator)
    values = values | with_entries(values, elements, sent)
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in names:  # a shared parameter has several keys
            values[key] = values[names[id(tensor)]]
    remembered = submodel.reconstruct(held | with_entries(held, elements, left), cut, remembered)
    return values, {f"{RESIDUAL}{name}": tensor for name, tensor in remembered.items()}


def _residual(name: str, assignment: Assignment, broadcast: Broadcast) -> torch.Tensor:
    """Return a parameter's residual at a client, in the full model's coordinates; zeros at first."""
    found = assignment.memory.get(f"{RESIDUAL}{name}")
    return torch.zeros_like(broadcast.params[name], dtype=torch.float32) if found is None else found


def entries_of(tensors: Params, elements: Params) -> Params:
    """Return the entries that a mask of single entries keeps, `(entries,)` by key, float64 in main memory."""
    kept = {key: tensor[elements[key]] if key in elements else tensor.flatten() for key, tensor in tensors.items()}
    return {key: found.double().cpu() for key, found in kept.items()}


def with_entries(tensors: Params, elements: Params, entries: Params) -> Params:
    """Return the tensors of the entries' keys, with the kept entries replaced; the inverse of `entries_of`."""
    placed: Params = {}
    for key, found in entries.items():
        if key in elements:
            placed[key] = tensors[key].clone()
            placed[key][elements[key]] = found.to(tensors[key])
        else:
            placed[key] = found.to(tensors[key]).view_as(tensors[key])
    return placed


def add_update(sums: dict[str, ExactSum], view: ClientView, update: Update) -> None:
    """Add what a client sends, weighted with its rows, and its mask of single entries, to sums in place."""
    rows = len(view.targets)
    found = dict(view.model.state_dict()) if update.values is None else update.values
    sent = {key: found[key] for key in sums["update"].tensors}
    if update.values is None:
        sums["update"].add_change(sent, view.start, view.cut, rows)
    else:
        sums["update"].add(sent, view.cut, rows)
    if view.elements:
        held = {key: kept.double() for key, kept in view.elements.items()}
        _sum_of(sums, "held", held, view).add(held, view.cut, rows)


def counts_of(trained: Params, cut: Cut, params: Params) -> Params:
    """Return a client's own tensors of whole numbers and booleans, in the full model's coordinates.

    They are counts and marks, such as BatchNorm's number of batches, of which no mean is taken. See
    `ClientUpdates.largest`.
    """
    keys = [key for key, tensor in params.items() if not tensor.is_floating_point()]
    return {key: spread_out(trained[key].cpu(), cut.get(key, {}), params[key].cpu()) for key in keys}


def add_reports(sums: dict[str, ExactSum], view: ClientView, reports: Sequence[Report]) -> None:
    """Add the reports of a client's hooks to sums in place."""
    for report in reports:
        for name, (values, weight) in report.sums.items():
            _sum_of(sums, name, values, view).add(values, view.cut, weight)


def _sum_of(sums: dict[str, ExactSum], name: str, values: Params, view: ClientView) -> ExactSum:
    """Return the sum of a name, which starts with the first client that adds to it."""
    if name not in sums:
        like = {key: view.broadcast.params.get(key, value) for key, value in values.items()}
        sums[name] = ExactSum.zeros_like(like)
    return sums[name]
