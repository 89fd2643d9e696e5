"""What a client sends back: how far its submodel has moved, added to the sums of its chunk."""

from collections.abc import Sequence

import torch

from raysim.client.hooks import Report
from raysim.client.view import ClientView
from raysim.core.tensors import Params
from raysim.pruning import elements as element_masks
from raysim.server.fixed_point import ExactSum


def add_update(sums: dict[str, ExactSum], view: ClientView, own_classes: torch.Tensor | None) -> None:
    """Add a client's update, weighted with its rows, and which single entries it is of.

    Args:
        sums: Sums by name, in the full model's coordinates; changed in place.
        view: The client, its submodel trained.
        own_classes: Which rows of the classifier it may change, `(classes,)`; None: all.
    """
    rows = len(view.targets)
    if own_classes is None and not view.elements:
        sums["update"].add_change(dict(view.model.state_dict()), view.start, view.cut, rows)
        return
    update = element_masks.apply(view.elements, difference(view, own_classes))
    sums["update"].add(update, view.cut, rows)
    if view.elements:
        held = {key: kept.double() for key, kept in view.elements.items()}
        sum_of(sums, "held", held, view).add(held, view.cut, rows)


def add_reports(sums: dict[str, ExactSum], view: ClientView, reports: Sequence[Report]) -> None:
    """Add what a client's hooks report."""
    for report in reports:
        for name, (values, weight) in report.sums.items():
            sum_of(sums, name, values, view).add(values, view.cut, weight)


def sum_of(sums: dict[str, ExactSum], name: str, values: Params, view: ClientView) -> ExactSum:
    """Return the sum of a name; the first client that adds to it begins it."""
    if name not in sums:
        sums[name] = ExactSum.zeros_like({key: view.broadcast.params[key] for key in values})
    return sums[name]


def difference(view: ClientView, own_classes: torch.Tensor | None) -> Params:
    """Return after minus before in float64, zero in rows of the classifier that the client may not change."""
    update = {key: after.double() - view.start[key].double() for key, after in view.model.state_dict().items()}
    outputs = view.workload.plan.outputs
    if own_classes is not None and outputs is not None:
        for slot in outputs.slots:
            update[slot.key][~own_classes] = 0
    return update
