"""Score channels: l1 norms, curvature-aware scores, and running means of clients' reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.core.tensors import Params
from raysim.pruning.groups import ChannelGroups
from raysim.pruning.submodel import Cut

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreForm:
    """Weights of a channel's two sums, of g w (or |g w|) and of h w^2, in its score.

    CA-HFP, arXiv 2603.12591: eq 15 as printed, and the loss change of eq 14 that it approximates.

    Attributes:
        gradient: `signed`: sum g w; `absolute`: sum |g w|, entry by entry; `absolute sum`: |sum g w|, so that the
            signed sum is what clients report and the server averages; `none`: not read.
        gradient_factor: Factor of the gradient term.
        curvature_factor: Factor of sum h w^2.
    """

    gradient: Literal["signed", "absolute", "absolute sum", "none"]
    gradient_factor: float
    curvature_factor: float

    @property
    def num_sums(self) -> int:
        """Number of values per channel that a client must report."""
        return 1 if self.gradient == "none" else 2

    def first_order(self, gradient_sum: Scores) -> Scores:
        """Return the gradient term of every channel."""
        return self.gradient_factor * (np.abs(gradient_sum) if self.gradient == "absolute sum" else gradient_sum)

    def second_order(self, curvature_sum: Scores) -> Scores:
        """Return the curvature term of every channel."""
        return self.curvature_factor * curvature_sum

    def combine(self, gradient_sum: Scores, curvature_sum: Scores) -> Scores:
        """Return the score of every channel."""
        return self.first_order(gradient_sum) + self.second_order(curvature_sum)


FORMS: dict[str, ScoreForm] = {
    "printed": ScoreForm("signed", 1.0, 1.0),
    "exact": ScoreForm("signed", -1.0, 0.5),
    "robust": ScoreForm("absolute", 1.0, 0.5),
    "curvature": ScoreForm("none", 0.0, 1.0),
    "channel": ScoreForm("absolute sum", 1.0, 0.5),
}


def form_of(name: str) -> ScoreForm:
    """Return a named form; users' own scores get the sums of `robust`."""
    return FORMS.get(name, FORMS["robust"])


def channel_sums(
    plan: ChannelGroups, values: Mapping[str, torch.Tensor], cut: Cut | None = None, consumers: bool = False
) -> Scores:
    """Sum values of parameter entries over each channel's own filter: weight row, bias and affine pair.

    Args:
        plan: The model's channel groups.
        values: One value per parameter entry, by state-dict key; missing keys count as zero.
        cut: The cut of the values, if they are a submodel's.
        consumers: Whether the weights that read the channel in the next layer count, too.

    Returns:
        `(num_units,)` in float64; zero for channels that the submodel does not hold.
    """
    sums = np.zeros(plan.num_units)
    for group, slot in plan.slots():
        if slot.key not in values or slot.role == "statistic" or (slot.role == "consumer" and not consumers):
            continue
        along = _sum_along(values[slot.key], slot.dim)
        kept = (cut or {}).get(slot.key, {}).get(slot.dim)
        if kept is not None:
            full = np.zeros(plan.shapes[slot.key][slot.dim])
            full[kept.cpu().numpy()] = along
            along = full
        sums[plan.units[group.name]] += along[slot.indices].sum(axis=1)
    return sums


def held_share(
    plan: ChannelGroups, held: Mapping[str, torch.Tensor], cut: Cut | None = None, consumers: bool = False
) -> Scores:
    """Return the share of each channel's entries that are held, `(num_units,)`.

    A sum over the entries of a channel that a narrow submodel holds has fewer terms, and is smaller; divided by this
    share it is that of the whole channel if the others are like them on average.

    Args:
        plan: The model's channel groups.
        held: 1 for every entry that is held and 0 for the others, by state-dict key; missing keys do not count.
        cut: The cut of the values, if they are a submodel's.
        consumers: Whether the weights that read the channel count, too.
    """
    one = torch.ones((), dtype=torch.float64)
    whole = {key: one.expand(plan.shapes[key]) for key in held}
    return channel_sums(plan, held, cut, consumers) / np.maximum(channel_sums(plan, whole, None, consumers), 1)


def _sum_along(values: torch.Tensor, dim: int) -> Scores:
    others = [other for other in range(values.dim()) if other != dim]
    along = values.double().sum(others) if others else values.double()
    return np.asarray(along.cpu().numpy(), dtype=np.float64)


def l1_norms(plan: ChannelGroups, params: Params) -> Scores:
    """Return the l1 norm of each channel's filters (Li et al., arXiv 1608.08710)."""
    return channel_sums(plan, {key: w.abs() for key, w in params.items() if w.dim() > 1})


def first_channels(plan: ChannelGroups) -> Scores:
    """Return minus each channel's index in its group, so that the first channels are kept (HeteroFL)."""
    return np.concatenate([-np.arange(group.size, dtype=np.float64) for group in plan.groups] or [np.zeros(0)])


def gradient_and_curvature_sums(
    plan: ChannelGroups,
    form: ScoreForm,
    params: Params,
    gradient: Params,
    curvature: Params,
    cut: Cut | None = None,
    consumers: bool = False,
) -> Scores:
    """Return each channel's sum of g w (or |g w|) and of h w^2, `(2, num_units)`.

    Args:
        plan: The model's channel groups.
        form: Decides which gradient sum is needed.
        params: Weights w.
        gradient: Estimates g by state-dict key.
        curvature: Estimates h of the Hessian's diagonal by state-dict key.
        cut: The cut of all three, if they are a submodel's.
        consumers: Whether the weights that read a channel count, too.
    """
    second = {key: h.double() * params[key].double() ** 2 for key, h in curvature.items()}
    curvature_sum = channel_sums(plan, second, cut, consumers)
    if form.gradient == "none":
        return np.stack([np.zeros_like(curvature_sum), curvature_sum])
    first = {key: g.double() * params[key].double() for key, g in gradient.items()}
    if form.gradient == "absolute":
        first = {key: product.abs() for key, product in first.items()}
    return np.stack([channel_sums(plan, first, cut, consumers), curvature_sum])


def running_mean(
    old: torch.Tensor, observed: torch.Tensor, held: torch.Tensor, seen: torch.Tensor, decay: float
) -> torch.Tensor:
    """Update a running mean for entries that a client held; the first observation starts it.

    Args:
        old: The mean before this round.
        observed: The observation of this round, of the same shape.
        held: Whether this round has an observation of an entry, broadcastable to `old`.
        seen: Whether an earlier round had one.
        decay: Weight of the past, in [0, 1).
    """
    moved = torch.where(seen, decay * old + (1 - decay) * observed, observed)
    return torch.where(held, moved, old)
