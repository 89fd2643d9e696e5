"""Recurrent layers whose layers and directions differ in width: what a cut LSTM, GRU or RNN becomes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

Packing = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Rows of each time step of a packed batch; the order of its sequences, and back."""


class LayerStates(Sequence[torch.Tensor]):
    """The states of a recurrent layer's layers and directions, `(batch, width)` each, indexed as one tensor is.

    States of unequal widths cannot be one tensor. An index or a slice of the first dimension picks among them;
    everything else that a tensor can do is done by all of them stacked, `(layers * directions, batch, width)`, and
    fails where their widths differ.
    """

    def __init__(self, states: Sequence[torch.Tensor]) -> None:
        self.states = tuple(states)

    def stacked(self) -> torch.Tensor:
        """Return the states as one tensor, `(layers * directions, batch, width)`."""
        return torch.stack(self.states)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return self.states[index]
        if isinstance(index, slice):
            return LayerStates(self.states[index])
        if isinstance(index, tuple) and index and isinstance(index[0], int):
            return self.states[index[0]][index[1:]]
        return self.stacked()[index]

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.states)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "states":
            raise AttributeError(name)
        return getattr(self.stacked(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch with the stacked states, or with a list of them where it takes several."""
        return func(*(_plain(each) for each in args), **{key: _plain(each) for key, each in (kwargs or {}).items()})


def _plain(value: Any) -> Any:
    if isinstance(value, LayerStates):
        return value.stacked()
    if isinstance(value, tuple | list):
        return type(value)(_plain(each) for each in value)
    return value


class _NarrowRecurrent(nn.RNNBase):
    """Runs each layer and direction with weights of its own width; keys and outputs are those of its base class.

    The final states are a tensor where all widths are equal, else `LayerStates`. A given initial state may be
    `LayerStates`, or a tensor of another width: its first entries count, and missing ones are zero. Models make
    states of zeros by the width that they were built with.
    """

    def flatten_parameters(self) -> None:
        """Do nothing: there is no one block of memory for weights of several widths."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return what the base class does: the outputs of the last layer, and the final states."""
        if isinstance(input, PackedSequence):
            packing = input.batch_sizes, input.sorted_indices, input.unsorted_indices
            outputs, finals = self._layers(input.data, hx, packing)
            return PackedSequence(outputs, *packing), finals
        if input.dim() == 3:
            return self._layers(input, hx, None)
        batch = 0 if self.batch_first else 1
        outputs, finals = self._layers(input.unsqueeze(batch), _with_batch(hx), None)
        return outputs.squeeze(batch), _without_batch(finals)

    def _layers(self, inputs: torch.Tensor, hx: Any, packing: Packing | None) -> tuple[torch.Tensor, Any]:
        has_cells = isinstance(self, nn.LSTM)
        finals: list[list[torch.Tensor]] = []
        directions = ("", "_reverse") if self.bidirectional else ("",)
        for layer in range(self.num_layers):
            outputs = []
            for suffix in directions:
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
                weights = [getattr(self, f"{name}_l{layer}{suffix}") for name in names]
                width, index = weights[1].shape[1], len(finals)
                given = hx if hx is not None and has_cells else (hx,) * (2 if has_cells else 1)
                states = [self._initial(state, index, width, inputs, packing) for state in given]
                output, *final = self._run(inputs, states if has_cells else states[0], weights, packing, bool(suffix))
                outputs.append(output)
                finals.append([_ordered(state[0], packing, back=True) for state in final])
            inputs = torch.cat(outputs, dim=-1)
            if layer + 1 < self.num_layers:
                inputs = nn.functional.dropout(inputs, self.dropout, self.training)
        ends = [_joined(states) for states in zip(*finals, strict=True)]
        return inputs, tuple(ends) if has_cells else ends[0]

    def _initial(
        self, given: Any, index: int, width: int, inputs: torch.Tensor, packing: Packing | None
    ) -> torch.Tensor:
        """Return the initial state of a layer and direction, `(1, batch, width)`."""
        if given is None:
            count = int(packing[0][0]) if packing else inputs.shape[0 if self.batch_first else 1]
            return inputs.new_zeros(1, count, width)
        return _ordered(_fitting(given[index], width), packing)[None].contiguous()

    def _run(
        self, inputs: torch.Tensor, state: Any, weights: list[torch.Tensor], packing: Packing | None, backwards: bool
    ) -> tuple[torch.Tensor, ...]:
        """Run one layer in one direction; return its outputs and its final states, `(1, batch, width)` each."""
        kernel = getattr(torch._VF, self.mode.lower())
        state = tuple(state) if isinstance(state, list) else state
        if packing is None:
            time = 1 if self.batch_first else 0
            inputs = inputs.flip(time) if backwards else inputs
            outputs, *final = kernel(
                inputs, state, weights, self.bias, 1, 0.0, self.training, False, self.batch_first
            )
            return outputs.flip(time) if backwards else outputs, *final
        order = _reversed_rows(packing[0]).to(inputs.device) if backwards else None
        inputs = inputs if order is None else inputs[order]
        outputs, *final = kernel(inputs, packing[0], state, weights, self.bias, 1, 0.0, self.training, False)
        return outputs if order is None else outputs[order], *final


def _ordered(state: torch.Tensor, packing: Packing | None, back: bool = False) -> torch.Tensor:
    """Return a state, `(batch, width)`, in the order of a packed batch, or back in that of the sequences."""
    order = packing[2 if back else 1] if packing else None
    return state if order is None else state.index_select(0, order)


def _reversed_rows(batch_sizes: torch.Tensor) -> torch.Tensor:
    """Return, for each row of a packed batch, the row that takes its place when every sequence is reversed.

    >>> _reversed_rows(torch.tensor([2, 1])).tolist()  # a sequence of two steps, rows 0 and 2, and one of one
    [2, 1, 0]
    """
    starts = torch.cumsum(batch_sizes, 0) - batch_sizes
    sequence = torch.cat([torch.arange(int(size)) for size in batch_sizes])
    step = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes)
    lengths = (batch_sizes[None] > torch.arange(int(batch_sizes[0]))[:, None]).sum(1)
    return starts[lengths[sequence] - 1 - step] + sequence


def _joined(states: Sequence[torch.Tensor]) -> torch.Tensor | LayerStates:
    is_one = len({state.shape for state in states}) == 1
    return torch.stack(tuple(states)) if is_one else LayerStates(states)


def _with_batch(hx: Any) -> Any:
    if hx is None:
        return None
    if isinstance(hx, tuple):
        return tuple(_with_batch(each) for each in hx)
    return LayerStates([state[None] for state in hx])


def _without_batch(finals: Any) -> Any:
    if isinstance(finals, tuple):
        return tuple(_without_batch(each) for each in finals)
    return _joined([state[0] for state in finals])


class NarrowLSTM(_NarrowRecurrent, nn.LSTM):
    """An LSTM each of whose layers and directions has its own width."""


class NarrowGRU(_NarrowRecurrent, nn.GRU):
    """A GRU each of whose layers and directions has its own width."""


class NarrowRNN(_NarrowRecurrent, nn.RNN):
    """An RNN each of whose layers and directions has its own width."""


class NarrowLSTMCell(nn.LSTMCell):
    """An LSTM cell that takes states of other widths, such as zeros: their first entries, and zeros behind them."""

    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:
        """Return what an LSTM cell does."""
        return super().forward(
            input, None if hx is None else (_fitting(hx[0], self.hidden_size), _fitting(hx[1], self.hidden_size))
        )


class NarrowGRUCell(nn.GRUCell):
    """A GRU cell that takes states of other widths, such as zeros: their first entries, and zeros behind them."""

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        """Return what a GRU cell does."""
        return super().forward(input, None if hx is None else _fitting(hx, self.hidden_size))


class NarrowRNNCell(nn.RNNCell):
    """An RNN cell that takes states of other widths, such as zeros: their first entries, and zeros behind them."""

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        """Return what an RNN cell does."""
        return super().forward(input, None if hx is None else _fitting(hx, self.hidden_size))


def _fitting(state: torch.Tensor, width: int) -> torch.Tensor:
    """Return the first entries of a state, and zeros behind it where it has fewer."""
    return nn.functional.pad(state, (0, width - state.shape[-1]))


_NARROW: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: NarrowLSTM,
    nn.GRU: NarrowGRU,
    nn.RNN: NarrowRNN,
    nn.LSTMCell: NarrowLSTMCell,
    nn.GRUCell: NarrowGRUCell,
    nn.RNNCell: NarrowRNNCell,
}
"""The type that each type becomes when it is cut."""


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer or cell of PyTorch, whole or cut; not one of a user's subclasses."""
    return type(module) in _NARROW or type(module) in _NARROW.values()


def runs_as_recurrent(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's recurrent layers or cells, or a subclass that only adds to it."""
    return any(isinstance(module, known) and type(module).forward is known.forward for known in _NARROW) or (
        type(module) in _NARROW.values()
    )


def num_gates(module: nn.Module) -> int:
    """Return the number of gates: the rows of the weights are those of the first gate, then of the next."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1


def refit(module: Any) -> None:
    """Set the type and attributes of a recurrent layer or cell to the shapes of its tensors, in place."""
    is_cell = isinstance(module, nn.RNNCellBase)
    first = module.weight_ih if is_cell else module.weight_ih_l0
    recurrent = {name: tensor for name, tensor in module.named_parameters() if name.startswith("weight_hh")}
    width = max(tensor.shape[1] for tensor in recurrent.values())
    whole = {tensor.shape[1] for tensor in recurrent.values()} == {module.hidden_size}
    if getattr(module, "proj_size", 0) or (whole and first.shape[1] == module.input_size):
        module.input_size = first.shape[1]
        return
    module.__class__ = _NARROW.get(type(module), type(module))
    module.input_size, module.hidden_size = first.shape[1], width
