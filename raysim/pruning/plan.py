"""The plan of a model's channel groups: trace, choose, extract, reconstruct; usable on its own."""

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from raysim.core import seeding
from raysim.core.errors import SettingError, nearest_first, unknown_name
from raysim.core.json_text import json_in
from raysim.core.storage import atomic
from raysim.core.tensors import Params
from raysim.pruning import masks, outputs, submodel
from raysim.pruning.groups import ChannelGroup, ChannelGroups, from_json, to_json
from raysim.pruning.masks import Mask
from raysim.pruning.step_limit import MAX_STEPS

if TYPE_CHECKING:
    from raysim.pruning.proof import Forward


class ChannelPlan(ChannelGroups):
    """The channels of a model that can only be dropped together, and how they are cut.

    It works without Ray, MLflow or an experiment. Masks hold one boolean per *unit*: a channel with everything that
    makes and reads it, in the full model's coordinates.
    """

    @staticmethod
    def trace(
        model: nn.Module,
        example_input: Any,
        keep_whole: Sequence[str] = (),
        keep_residual: bool = False,
        forward: "Forward | None" = None,
        max_steps: int = MAX_STEPS,
        blocks: bool = False,
        uncut: Mapping[str, str] | None = None,
    ) -> "ChannelPlan":
        """Find the channels of all layers that can only be dropped together.

        Args:
            model: Any module that Torch-Pruning's dependency graph can trace; it is left unchanged.
            example_input: A batch of two inputs or more; a tuple or list of several arguments, or a mapping of
                named ones. Small inputs are traced faster.
            keep_whole: Names of layers whose output channels are never dropped, with wildcards.
            keep_residual: Whether channels that an addition joins across several layers are left whole.
            forward: Applies the model to the example, `(model, example) -> output`. None: `model(example)`.
            max_steps: Steps of the search for channel groups after which to give up: a count, so that a busy machine
                does not change the outcome.
            blocks: Whether blocks beside an identity shortcut are units, too: a mask may drop them as a whole, and
                the submodel passes on their input. `keep_top` and random masks keep them.
            uncut: Keys of tensors that are never cut, each with the reason that follows its name: channels that
                reach one are left whole.

        Returns:
            A plan whose groups together satisfy: in eval mode, the compact submodel computes what the full model
            computes with the dropped entries at zero (norms that mix channels: with statistics over the kept
            channels only). This is proved in numbers; groups that do not satisfy it are in `unprunable`.

        Raises:
            UntraceableError: If the model cannot be traced; gives the reason and, where known, the layer.
            SettingError: If an argument is not allowed.
        """
        from raysim.pruning.trace import trace  # the tracer is not needed, and not imported, to cut

        found = trace(model, example_input, keep_whole, keep_residual, forward, max_steps, blocks, uncut)
        return _plan_of(found)

    @staticmethod
    def dense(
        model: nn.Module, reason: str, example_input: Any = None, forward: "Forward | None" = None
    ) -> "ChannelPlan":
        """Return a plan without groups, for a model that cannot be traced and stays whole.

        Args:
            model: The model; it is left unchanged.
            reason: The reason why nothing is prunable.
            example_input: As for `trace`, to find the classifier. None: the plan has no classifier.
            forward: As for `trace`.
        """
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        named = [name for name, layer in model.named_modules() if list(layer.parameters(recurse=False))]
        classifier = None if example_input is None else outputs.find(model, example_input, forward)
        return ChannelPlan((), shapes, classifier, dict.fromkeys(named, reason))

    def keep_top(self, scores: Mapping[str, ArrayLike], keep_ratio: float) -> Mask:
        """Return the mask that keeps the units with the highest scores in each group; of equal scores the first.

        Args:
            scores: The scores of every group's units, `(size,)`.
            keep_ratio: Share of each group's units to keep, in (0, 1]; at least one unit stays.

        Raises:
            SettingError: If a group is missing or unknown, a length or score is wrong, or the ratio is.
        """
        _check_ratio(keep_ratio)
        for name in scores:
            if name not in self.units:
                raise unknown_name("scores", name, self.units)
        missing = [name for name in self.units if name not in scores]
        if missing:
            raise SettingError(f"scores has none for group {missing[0]!r}; allowed: scores for every group")
        values = [_checked_scores(group, scores[group.name]) for group in self.groups]
        return masks.keep_top(self, np.concatenate(values or [np.zeros(0)]), keep_ratio)

    def random_mask(self, keep_ratio: float, seed: int = 0) -> Mask:
        """Return a mask that keeps random units of each group, drawn from the seed.

        Raises:
            SettingError: If `keep_ratio` is not in (0, 1].
        """
        _check_ratio(keep_ratio)
        scores = seeding.generator(seed, "random mask").random(self.num_units)
        return masks.keep_top(self, scores, keep_ratio)

    def extract(self, model: nn.Module, mask: Mask) -> nn.Module:
        """Return the submodel of a mask: a smaller, ordinary, independent module.

        It has the model's mode, dtypes, device, frozen parameters and, as with `copy.deepcopy`, hooks, but none of
        its gradients. The model is left unchanged. Single entries that the mask drops are zero.

        Raises:
            SettingError: If the mask or the model's shapes are not this plan's.
        """
        self._check_mask(mask)
        self._check_full("model", dict(model.state_dict()))
        return submodel.extract(model, self, mask)

    def reconstruct(self, compact: Params, into: Params, mask: Mask) -> tuple[Params, dict[str, torch.Tensor]]:
        """Write a submodel's tensors back in the full model's coordinates.

        Args:
            compact: The submodel's state dict.
            into: The full model's state dict; it is left unchanged.
            mask: The mask of the submodel.

        Returns:
            The full model's tensors by key, in which entries outside the submodel have the value in `into`; and
            booleans by key, broadcastable to the tensor's shape, that are true for entries of the submodel.

        Raises:
            SettingError: If a key is missing, or the mask or a shape is not this plan's.
        """
        self._check_mask(mask)
        self._check_full("into", into)
        cut = submodel.cut_for(self, mask)
        _check_shapes("submodel", compact, submodel.compact_shapes(self, cut))
        params = submodel.reconstruct(compact, cut, into)
        coverage = submodel.held(cut, into)
        for key in mask.elements:
            coverage[key] = coverage[key] & submodel.kept_elements(mask.elements[key], into[key].shape)
            params[key] = torch.where(coverage[key].to(params[key].device), params[key], into[key])
        return params, coverage

    def summary(self) -> str:
        """Describe which groups can be pruned, and which channels are left whole and why."""
        channels = [group for group in self.groups if group.kind == "channel"]
        units = sum(group.size for group in channels)
        lines = [f"{len(channels)} channel groups with {units} units can be pruned"]
        for group in channels:
            own = [slot.key for slot in group.slots if slot.role == "weight"]
            layers = sorted({key.rpartition(".")[0] or key for key in own})
            shared = (
                f", with {', '.join(layer for layer in layers if layer != group.name)}" if len(layers) > 1 else ""
            )
            lines.append(f"  {group.name}: {group.size} units{shared}")
        blocks = [group.name for group in self.groups if group.kind == "block"]
        lines += [f"{len(blocks)} blocks can be dropped: {', '.join(blocks)}"] if blocks else []
        whole = dict(self.unprunable)
        if self.outputs is not None:
            whole[self.outputs.name] = f"the model's outputs, {self.outputs.size} classes"
        lines += ["left whole:"] if whole else []
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in whole.items()])

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        atomic.write_text(Path(path), json.dumps(to_json(self)))

    @staticmethod
    def load(path: str | Path) -> "ChannelPlan":
        """Read a plan written by `save`, without the model or the tracer.

        Raises:
            SettingError: If the file does not hold a plan.
        """
        try:
            return ChannelPlan.from_json(json_in(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise SettingError(f"path={str(path)!r} does not hold a channel plan: {error}") from None

    @staticmethod
    def from_json(content: dict[str, Any]) -> "ChannelPlan":
        """Return the plan in the content of a file that `save` wrote; unchecked."""
        return _plan_of(from_json(content))

    def _check_mask(self, mask: Mask) -> None:
        if mask.kept.shape != (self.num_units,) or mask.kept.dtype != np.bool_:
            raise SettingError(
                f"mask of shape {mask.kept.shape} and type {mask.kept.dtype} is not this plan's; "
                f"allowed: ({self.num_units},) booleans"
            )
        for group in self.emptied(mask.kept):
            raise SettingError(f"mask keeps no unit of group {group!r}; allowed: one or more")
        for key, packed in mask.elements.items():
            if key not in self.shapes:
                raise unknown_name("mask.elements", key, self.shapes)
            size = int(np.prod(self.shapes[key]))
            if len(packed) != (size + 7) // 8:
                raise SettingError(f"mask.elements[{key!r}] has {len(packed)} bytes; allowed: {(size + 7) // 8}")

    def _check_full(self, name: str, params: Params) -> None:
        for key in params:
            if key not in self.shapes:
                raise unknown_name(name, key, self.shapes)
        _check_shapes(name, params, self.shapes)


def _plan_of(groups: ChannelGroups) -> ChannelPlan:
    return ChannelPlan(groups.groups, groups.shapes, groups.outputs, groups.unprunable)


def _check_ratio(keep_ratio: float) -> None:
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, Real) or not 0 < keep_ratio <= 1:
        raise SettingError(f"keep_ratio={keep_ratio!r} is not in (0, 1]")


def _checked_scores(group: ChannelGroup, scores: ArrayLike) -> masks.Scores:
    given = scores.detach().cpu().double().numpy() if isinstance(scores, torch.Tensor) else scores
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (group.size,):
        raise SettingError(f"scores[{group.name!r}] has shape {values.shape}; allowed: ({group.size},)")
    if np.isnan(values).any():
        raise SettingError(f"scores[{group.name!r}] holds NaN; allowed: numbers")
    return values


def _check_shapes(name: str, params: Params, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        if key not in params:
            nearest = ", ".join(nearest_first(key, params)[:3])
            raise SettingError(f"{name} has no tensor {key!r}; nearest: {nearest or 'none'}")
        if tuple(params[key].shape) != shape:
            raise SettingError(f"{name} has {key!r} of shape {tuple(params[key].shape)}; allowed: {shape}")
