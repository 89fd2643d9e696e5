"""Replace layers that the tracer does not know by linear ones with the same channels, while it traces."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from raysim.pruning import attention, recurrent, submodel
from raysim.pruning.groups import Role
from raysim.pruning.heads import Mixing
from raysim.pruning.layers import Side, UnsupportedLayerError, is_transposed
from raysim.pruning.recurrent import LayerStates


class Part(nn.Linear):
    """A linear layer in place of a part of another layer: what that reads and writes, not what it computes.

    Attributes:
        layer: Name of the layer that it is a part of.
        name: Name of the part, as of a group that starts here.
        inside: Whether its outputs stay inside the layer.
    """

    def __init__(
        self,
        layer: str,
        name: str,
        reads: Side | str,
        writes: Side | str,
        num_inputs: int,
        num_outputs: int,
        inside: bool = False,
    ) -> None:
        super().__init__(num_inputs, num_outputs, dtype=torch.float64)
        self.layer, self.name, self.inside = layer, name, inside
        self._reads, self._writes = reads, writes

    def side(self, reads: bool) -> Side:
        """Return the channels that the part reads, or those that it writes.

        Raises:
            UnsupportedLayerError: If they cannot be cut.
        """
        side = self._reads if reads else self._writes
        if isinstance(side, str):
            raise UnsupportedLayerError(side)
        return side


def with_stand_ins(model: nn.Module, mixings: Sequence[Mixing] = ()) -> nn.Module:
    """Return a copy of a model in which stand-ins replace recurrent layers, cells and attention.

    Args:
        model: The model; it is left unchanged.
        mixings: Where modules of other types mix channels: the tracer is not shown how.
    """
    copies: dict[int, Any] = dict(submodel.without_graphs(model))
    for name, module in model.named_modules():
        if recurrent.runs_as_recurrent(module):
            stand_in = _CellStandIn if isinstance(module, nn.RNNCellBase) else _RecurrentStandIn
            copies[id(module)] = stand_in(name, module)
        elif attention.is_attention(module):
            copies[id(module)] = _AttentionStandIn(name, module)
        elif is_transposed(module):
            copies[id(module)] = _transposed_part(name, module)
    copied = copy.deepcopy(model, copies)
    for mixing in mixings:
        _hide_inside(copied, mixing)
    return copied


def _hide_inside(model: nn.Module, mixing: Mixing) -> None:
    """Let a layer that reads mixed channels depend on their sources by one number each."""
    means: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            means[name] = output.mean()

        return hook

    def replaced(module: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        return (args[0].detach() + sum(means.values()),)

    for name in mixing.sources:
        model.get_submodule(name).register_forward_hook(remember(name))
    model.get_submodule(mixing.reader).register_forward_pre_hook(replaced)


class _StandIn(nn.Module):
    """A module with the attributes and, for `isinstance`, the type of the one that it replaces."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.replaced = (module,)  # in a tuple: not a child

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The type of the replaced module: a model may ask for it."""
        return type(self.__dict__["replaced"][0]) if "replaced" in self.__dict__ else type(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.replaced[0], name)


def _transposed_part(name: str, module: Any) -> Part:
    """Return a linear layer in place of GPT-2's, whose weight is `(inputs, outputs)`."""
    num_inputs, num_outputs = module.weight.shape
    own: list[tuple[str, int, Role]] = [("weight", 1, "weight")]
    own += [] if module.bias is None else [("bias", 0, "weight")]
    reads, writes = Side(num_inputs, (("weight", 0, "consumer"),)), Side(num_outputs, tuple(own))
    return Part(name, name or type(module).__name__, reads, writes, num_inputs, num_outputs)


def _recurrent_part(layer: str, name: str, module: Any, suffix: str) -> Part:
    """Return the part for one layer and direction of a recurrent layer, or for a cell: its units, with all gates.

    It reads for both directions of the layer: what one of them makes may be read by nobody.
    """
    weight_ih = getattr(module, f"weight_ih{suffix}")
    tensors: list[tuple[str, int, Role]] = [(f"weight_{kind}{suffix}", 0, "weight") for kind in ("ih", "hh")]
    if module.bias:
        tensors += [(f"bias_{kind}{suffix}", 0, "weight") for kind in ("ih", "hh")]
    tensors.append((f"weight_hh{suffix}", 1, "consumer"))
    forwards = suffix.removesuffix("_reverse")
    read = [each for each in (f"weight_ih{forwards}", f"weight_ih{forwards}_reverse") if hasattr(module, each)]
    reads = Side(weight_ih.shape[1], tuple((each, 1, "consumer") for each in read))
    gates, size = recurrent.num_gates(module), getattr(module, "proj_size", 0)
    width = size or len(weight_ih) // gates
    if not recurrent.is_recurrent(module):
        reason = f"layer {layer!r} is of type {type(module).__name__}; layers of types of one's own are not cut"
        return Part(layer, name, reason, reason, weight_ih.shape[1], width)
    if size:
        reason = f"layer {layer!r} projects its hidden units (proj_size); such layers are not cut"
        return Part(layer, name, reads, reason, weight_ih.shape[1], width)
    writes = Side(width, tuple(tensors), repeats=gates)
    return Part(layer, name, reads, writes, weight_ih.shape[1], width)


class _RecurrentStandIn(_StandIn):
    """Linear layers in place of an LSTM, GRU or RNN, one for each of its layers and directions."""

    def __init__(self, name: str, module: nn.RNNBase) -> None:
        super().__init__(module)
        self.directions = ("", "_reverse") if module.bidirectional else ("",)
        suffixes = [f"_l{layer}{each}" for layer in range(module.num_layers) for each in self.directions]
        names = [name] if len(suffixes) == 1 else [f"{name}.{suffix[1:]}".lstrip(".") for suffix in suffixes]
        own = type(module).__name__
        self.parts = nn.ModuleList(
            _recurrent_part(name, part or own, module, suffix) for part, suffix in zip(names, suffixes, strict=True)
        )

    def forward(self, inputs: Any, hx: Any = None) -> Any:
        """Return outputs and states that depend on the same channels as those of the replaced layer."""
        layer: Any = self.replaced[0]
        has_cells = isinstance(layer, nn.LSTM)
        given = [] if hx is None else [hx[0], hx[1]] if has_cells else [hx]
        stream = inputs.data if isinstance(inputs, PackedSequence) else inputs
        finals: list[torch.Tensor] = []
        for start in range(0, len(self.parts), len(self.directions)):
            found = []
            for index in range(start, start + len(self.directions)):
                output = self.parts[index](stream)
                for state in (each[index] for each in given):
                    output = output + (state.mean(0) if state.dim() == 2 else state)
                found.append(output)
                finals.append(_final(output, inputs, layer.batch_first))
            stream = torch.cat(found, dim=-1) if len(found) > 1 else found[0]
        ends = LayerStates(finals)
        outputs = PackedSequence(stream, *inputs[1:]) if isinstance(inputs, PackedSequence) else stream
        return outputs, (ends, LayerStates(finals)) if has_cells else ends


def _final(output: torch.Tensor, inputs: Any, batch_first: bool) -> torch.Tensor:
    if isinstance(inputs, PackedSequence):
        return output.index_select(0, torch.arange(int(inputs.batch_sizes[0])))
    return output[:, -1] if batch_first and output.dim() == 3 else output[-1]


class _CellStandIn(_StandIn):
    """A linear layer in place of a recurrent cell."""

    def __init__(self, name: str, module: nn.RNNCellBase) -> None:
        super().__init__(module)
        self.part = _recurrent_part(name, name or type(module).__name__, module, "")

    def forward(self, inputs: torch.Tensor, hx: Any = None) -> Any:
        """Return states that depend on the same channels as those of the replaced cell."""
        output = self.part(inputs)
        has_cells = isinstance(self.replaced[0], nn.LSTMCell)
        for state in () if hx is None else hx if has_cells else (hx,):
            output = output + state
        return (output, output * 1) if has_cells else output


class _AttentionStandIn(_StandIn):
    """Linear layers in place of PyTorch's attention: what reads its inputs, and its output projection."""

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(module)
        fused = module.in_proj_weight is not None
        tensors = ("in_proj_weight",) if fused else attention.PROJECTIONS
        self.reads = nn.ModuleList()
        for tensor in tensors:
            size = getattr(module, tensor).shape[1]
            reads = Side(size, ((tensor, 1, "consumer"),))
            self.reads.append(Part(name, f"{name}.{tensor}", reads, "", size, 1, inside=True))
        own: list[tuple[str, int, Role]] = [("out_proj.weight", 0, "weight")]
        own += [] if module.out_proj.bias is None else [("out_proj.bias", 0, "weight")]
        size = len(module.out_proj.weight)
        self.writes = Part(name, f"{name}.out_proj".lstrip("."), "", Side(size, tuple(own)), 1, size)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return outputs that depend on the same channels as those of the replaced attention."""
        layer: Any = self.replaced[0]
        time = 1 if layer.batch_first and query.dim() == 3 else 0
        inputs = [query] + [each.mean(time, keepdim=True) for each in (key, value) if each is not query]
        if len(self.reads) == 1:  # one weight reads all of them: their channels are the same ones
            read = self.reads[0](sum(inputs[1:], inputs[0]))
        else:
            means = [each.mean(time, keepdim=True) for each in (key, value)]
            read = self.reads[0](query) + self.reads[1](means[0]) + self.reads[2](means[1])
        weights = query.new_zeros(self._weight_shape(query, key, time, average_attn_weights))
        return self.writes(read), weights if need_weights else None

    def _weight_shape(self, query: torch.Tensor, key: torch.Tensor, time: int, averaged: bool) -> list[int]:
        batch = [query.shape[1 - time]] if query.dim() == 3 else []
        layer: Any = self.replaced[0]
        return [*batch, *([] if averaged else [layer.num_heads]), query.shape[time], key.shape[time]]
