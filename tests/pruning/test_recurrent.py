"""Hidden units of recurrent layers and cells: cut with all gates, in every layer and direction of its own."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from raysim.executors.in_process import InProcessExecutor
from raysim.models import cost
from raysim.pruning import submodel
from raysim.pruning.costs import CostTable
from raysim.pruning.gradients import without_gradient
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from raysim.pruning.recurrent import LayerStates
from raysim.simulation.build import build_scenario
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.oracles import held_entries, random_mask

WORDS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))


class WordNet(nn.Module):
    """Embeds words, runs a recurrent layer over them, and reads out its outputs or final states.

    Reads: `all` outputs, those of the `last` step, the last layer's final `state`, or all layers' states `stacked`.
    """

    def __init__(
        self,
        kind: type[nn.RNNBase] = nn.LSTM,
        layers: int = 1,
        both: bool = False,
        batch_first: bool = True,
        reads: str = "all",
        **options: Any,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = kind(6, 8, layers, bidirectional=both, batch_first=batch_first, **options)
        directions = 1 + both
        size = getattr(self.rnn, "proj_size", 0) or 8
        self.vocabulary = nn.Linear(size * directions * (layers if reads == "stacked" else 1), 11)
        self.reads = reads

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        batch_first = self.rnn.batch_first
        outputs, states = self.rnn(self.embed(words if batch_first else words.T))
        states = states[0] if isinstance(self.rnn, nn.LSTM) else states
        if self.reads == "state":
            return self.vocabulary(torch.cat([states[-2], states[-1]], 1) if self.rnn.bidirectional else states[-1])
        if self.reads == "stacked":
            return self.vocabulary(torch.cat(list(states), dim=1))
        return self.vocabulary(outputs if self.reads == "all" else outputs[:, -1] if batch_first else outputs[-1])


class StackedNet(nn.Module):
    """Two LSTMs with a norm between them, as in models of LEAF's Shakespeare; the last output is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.first = nn.LSTM(6, 7, batch_first=True)
        self.norm = nn.LayerNorm(7)
        self.second = nn.LSTM(7, 9, batch_first=True, bias=False)
        self.read = nn.Linear(9, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.first(self.embed(words))
        hidden, _ = self.second(self.norm(hidden))
        return self.read(hidden[:, -1])


class TranslationNet(nn.Module):
    """An encoder whose final state starts a decoder: their layers' units are the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 8, 2, batch_first=True)
        self.decoder = nn.LSTM(6, 8, 2, batch_first=True)
        self.read = nn.Linear(8, 11)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(words)
        _, states = self.encoder(embedded)
        return self.read(self.decoder(embedded.flip(1), states)[0])


class ZeroStateNet(nn.Module):
    """Makes its first states of zeros, by the width it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, 2, batch_first=True)
        self.read = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.read(self.rnn(inputs, inputs.new_zeros(2, len(inputs), 8))[0])


class ReshapedNet(nn.Module):
    """Makes states and reshapes outputs by the width it was built with, as tutorials do."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.hidden_size, self.layers = 8, layers
        self.rnn = nn.LSTM(6, 8, layers, batch_first=True)
        self.read = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states = (inputs.new_zeros(self.layers, len(inputs), self.hidden_size) for _ in range(2))
        outputs, _ = self.rnn(inputs, tuple(states))
        return self.read(outputs.contiguous().view(-1, self.hidden_size)).view(*inputs.shape[:2], -1)


class PoolingNet(nn.Module):
    """Pools the outputs of both directions by attention: a linear layer weighs the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.weigh, self.read = nn.Linear(16, 1, bias=False), nn.Linear(16, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.rnn(inputs)
        return self.read((self.weigh(outputs).softmax(1) * outputs).sum(1))


class HalfReadNet(nn.Module):
    """Reads the final state of one direction: the other one reads the layer below, too."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.read = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.read(self.rnn(inputs)[1][0][-1])


class PackedNet(nn.Module):
    """Reads packed sequences of unequal lengths in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.read, self.end = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([2, 5, 3][: len(inputs)])
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        outputs, (states, _) = self.rnn(packed)
        return self.read(pad_packed_sequence(outputs, batch_first=True)[0]) + self.end(states[-1])[:, None]


class CellNet(nn.Module):
    """Two cells in a loop over time, the second of which reads the first."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.first, self.second = kind(6, 8), kind(8, 7, bias=False)
        self.read = nn.Linear(7, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        has_cells = isinstance(self.first, nn.LSTMCell)
        first = inputs.new_zeros(len(inputs), 8)
        first, second = (first, first.clone()) if has_cells else first, None
        for step in inputs.unbind(1):
            first = self.first(step, first)
            second = self.second(first[0] if has_cells else first, second)
        return self.read(second[0] if has_cells else second)


class UnbatchedNet(nn.Module):
    """Reads one sequence at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, bidirectional=True)
        self.read, self.end = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = [self.rnn(each) for each in inputs]
        return torch.stack([self.read(outputs) + self.end(states[-1]) for outputs, (states, _) in found])


def floats() -> torch.Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LAYERS = {
    f"{kind.__name__} {layers}{' both' if both else ''}{'' if batch_first else ' time first'}, {reads}": (
        lambda kind=kind, layers=layers, both=both, batch_first=batch_first, reads=reads: (
            WordNet(kind, layers, both, batch_first, reads),
            WORDS,
        )
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for layers, both, batch_first, reads in (
        (1, False, True, "last"),
        (1, True, False, "all"),
        (2, False, False, "state"),
        (2, True, True, "state"),
        (3, True, False, "all"),
        (3, False, True, "stacked"),
    )
}
NETWORKS = {
    **LAYERS,
    "relu": lambda: (WordNet(nn.RNN, 2, nonlinearity="relu"), WORDS),
    "dropout": lambda: (WordNet(nn.LSTM, 3, dropout=0.5, bias=False), WORDS),
    "stacked": lambda: (StackedNet(), WORDS),
    "translation": lambda: (TranslationNet(), WORDS),
    "zero state": lambda: (ZeroStateNet(), floats()),
    "reshaped": lambda: (ReshapedNet(1), floats()),
    "reshaped of two layers": lambda: (ReshapedNet(2), floats()),
    "pooling": lambda: (PoolingNet(), floats()),
    "half read": lambda: (HalfReadNet(), floats()),
    "packed": lambda: (PackedNet(), floats()),
    "unbatched": lambda: (UnbatchedNet(), floats()),
    **{
        kind.__name__: (lambda kind=kind: (CellNet(kind), floats())) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, ChannelPlan, torch.Tensor]:
    model, example = NETWORKS[request.param]()
    if example.is_floating_point():
        model = model.double()
    plan = ChannelPlan.trace(model, example)
    assert plan.unprunable.keys() <= {"weigh"}
    return model, plan, example


Network = tuple[nn.Module, ChannelPlan, torch.Tensor]


def zeroed(model: nn.Module, plan: ChannelPlan, mask: Mask) -> nn.Module:
    full = copy.deepcopy(model)
    held = held_entries(plan, mask, model.state_dict())
    with torch.no_grad():
        for key, tensor in full.state_dict().items():
            tensor.mul_(held[key])
    return full


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_law_2_holds_for_random_widths(network: Network, seed: int) -> None:
    model, plan, example = network
    model = copy.deepcopy(model).double().eval()
    randomise(model, torch.Generator().manual_seed(1))
    mask = random_mask(plan, seed)
    with torch.no_grad():
        found, full = plan.extract(model, mask)(example), zeroed(model, plan, mask)
        for norm in (each for each in full.modules() if isinstance(each, nn.LayerNorm)):
            kept = torch.from_numpy(np.flatnonzero(mask.kept[plan.units["first"]]))
            norm.register_forward_hook(lambda norm, args, _, kept=kept: on_kept(norm, args[0], kept))
        expected = full(example)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def on_kept(norm: nn.LayerNorm, inputs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    normed = nn.functional.layer_norm(inputs[..., kept], (len(kept),), norm.weight[kept], norm.bias[kept])
    return torch.zeros_like(inputs).index_copy(-1, kept, normed)


def test_law_1_and_training_keep_the_keys(network: Network) -> None:
    model, plan, example = network
    mask = random_mask(plan, 3)
    small = plan.extract(model, mask).train()
    assert list(small.state_dict()) == list(model.state_dict())
    assert list(dict(small.named_parameters())) == list(dict(model.named_parameters()))
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    optimizer = torch.optim.SGD(small.parameters(), 0.5)
    small(example).square().sum().backward()
    optimizer.step()
    trained = {
        name: each.grad for name, each in small.named_parameters() if each.grad is not None and each.grad.any()
    }
    assert all(not torch.equal(small.state_dict()[key], before[key]) for key in trained)
    assert len(trained) >= len(before) // 2
    params, covered = plan.reconstruct(small.state_dict(), model.state_dict(), mask)
    cut, held = submodel.cut_for(plan, mask), held_entries(plan, mask, model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(covered[key].expand(tensor.shape), held[key])
        assert torch.equal(submodel.take(params[key], cut.get(key, {})), small.state_dict()[key])
        assert torch.equal(params[key][~held[key]], tensor[~held[key]])


def test_a_whole_mask_leaves_the_layers_as_they_are(network: Network) -> None:
    model, plan, example = network
    same = plan.extract(model, Mask.whole(plan))
    assert [type(each) for each in same.modules()] == [type(each) for each in model.modules()]
    assert torch.equal(same.eval()(example), copy.deepcopy(model).eval()(example))


def test_submodels_are_ordinary_modules(network: Network) -> None:
    model, plan, example = network
    small = plan.extract(model, random_mask(plan, 4)).eval()
    expected = small(example)
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), small.float().to(example.device)):
        found = again.to(next(model.parameters()).dtype)(example)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_each_layer_and_direction_has_units_of_its_own() -> None:
    plan = ChannelPlan.trace(WordNet(nn.LSTM, 2, True), WORDS)
    assert {group.name: group.size for group in plan.groups} == {
        "embed": 6,
        "rnn.l0": 8,
        "rnn.l0_reverse": 8,
        "rnn.l1": 8,
        "rnn.l1_reverse": 8,
    }
    slots = {(slot.key, slot.dim): slot for slot in plan.groups[2].slots}
    assert slots["rnn.weight_hh_l0_reverse", 0].indices[3].tolist() == [3, 11, 19, 27]
    assert slots["rnn.weight_hh_l0_reverse", 1].indices[3].tolist() == [3]
    assert slots["rnn.weight_ih_l1", 1].indices[3].tolist() == [11]
    assert slots["rnn.weight_ih_l1_reverse", 1].role == "consumer"


def test_a_decoder_that_starts_from_an_encoder_is_cut_with_it() -> None:
    plan = ChannelPlan.trace(TranslationNet(), WORDS)
    assert {group.name: group.size for group in plan.groups} == {"embed": 6, "encoder.l0": 8, "encoder.l1": 8}


def test_states_of_unequal_widths_are_indexed_as_a_tensor_is() -> None:
    states = LayerStates([torch.ones(3, 2), torch.zeros(3, 4)])
    assert len(states) == 2
    assert states[-1].shape == (3, 4)
    assert states[0, 1].shape == (2,)
    assert torch.cat(list(states[:]), dim=1).shape == (3, 6)
    with pytest.raises(RuntimeError, match="equal size"):
        states.transpose(0, 1)
    same = LayerStates([torch.ones(3, 2), torch.zeros(3, 2)])
    assert same.transpose(0, 1).shape == (3, 2, 2)
    assert torch.flatten(same, 1).shape == (2, 6)


def test_a_model_that_needs_equal_widths_is_left_whole_with_the_reason() -> None:
    class Folded(WordNet):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            _, (states, _) = self.rnn(self.embed(words))
            return self.vocabulary(states.transpose(0, 1).flatten(1).unflatten(1, (2, 8)).sum(1))

    plan = ChannelPlan.trace(Folded(nn.LSTM, 2), WORDS)
    assert [group.name for group in plan.groups] == ["embed"]
    assert "rnn.l0: what is left does not run without it" in plan.summary()


def test_projections_are_left_whole_and_so_are_subclasses() -> None:
    class Own(nn.LSTM):
        """A user's subclass, which may compute anything."""

    plan = ChannelPlan.trace(WordNet(nn.LSTM, proj_size=4), WORDS)
    assert plan.unprunable == {"rnn": "layer 'rnn' projects its hidden units (proj_size); such layers are not cut"}
    assert [group.name for group in plan.groups] == ["embed"]
    whole = ChannelPlan.trace(WordNet(Own), WORDS)
    reason = "layer 'rnn' is of type Own; layers of types of one's own are not cut"
    assert whole.groups == ()
    assert whole.unprunable == {"embed": reason, "rnn": reason}


def test_keep_whole_names_a_recurrent_layer() -> None:
    plan = ChannelPlan.trace(WordNet(nn.GRU, 2), WORDS, keep_whole=["rnn"])
    assert [group.name for group in plan.groups] == ["embed"]
    assert plan.unprunable["rnn.l1"] == "left whole, since keep_whole names 'rnn'"


def lstm_flops(widths: list[tuple[int, int]], steps: int) -> int:
    """Forward: two per multiply-accumulate of four gates with inputs and state, in every layer and step."""
    return sum(2 * 4 * hidden * (inputs + hidden) * steps for inputs, hidden in widths)


@pytest.mark.parametrize("kept", [8, 3])
def test_flops_equal_a_hand_count_and_fall_with_the_width(kept: int) -> None:
    model = WordNet(nn.LSTM, 2, reads="last")
    plan = ChannelPlan.trace(model, WORDS, keep_whole=["embed"])
    table = CostTable(model, plan, (5,), WORDS[:2])
    mask = plan.keep_top({name: np.arange(8) for name in plan.units}, kept / 8)
    read = 2 * kept * 11
    products = lstm_flops([(6, kept), (kept, kept)], steps=5)
    first_states = 2 * 2 * 4 * kept * kept  # zeros, in both layers: no gradient is computed for them
    assert table.forward_flops_of(mask) == products + read
    assert table.of(mask).train_flops == 3 * (products + read) - first_states
    assert table.of(mask).parameters == sum(each.numel() for each in plan.extract(model, mask).parameters())


def test_flops_are_the_same_in_main_memory() -> None:
    """An LSTM is one call of oneDNN, which the counter would not see into."""
    model = WordNet(nn.LSTM, 2, reads="last")
    on_meta = cost.count(copy.deepcopy(model).to("meta"), (5,), WORDS[:2].to("meta"))
    assert cost.count(model, (5,), WORDS[:2]).train_flops == on_meta.train_flops
    assert cost.forward_flops(model, (5,), WORDS[:2]) == lstm_flops([(6, 8), (8, 8)], 5) + 2 * 8 * 11


def test_gradients_are_measured_with_whole_numbers_where_the_example_has_them() -> None:
    model = WordNet(nn.LSTM)
    model.unused = nn.Linear(2, 2)
    assert without_gradient(model, (5,), WORDS) == {"unused.weight", "unused.bias"}


class RowNet(nn.Module):
    """Reads an image row by row with a recurrent layer or a Transformer encoder."""

    def __init__(self, width: int, num_classes: int, attends: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, 12)
        self.place = nn.Parameter(torch.zeros(1, 12))
        layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
        self.rows = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) if attends else None
        self.rows = self.rows or nn.LSTM(12, 8, 2, batch_first=True, bidirectional=True)
        self.read = nn.Linear(12 if attends else 8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.rows(self.first(images[:, 0]) + self.place)
        return self.read(found[1][0][-1] if isinstance(found, tuple) else found.mean(1))


def row_net(input_shape: tuple[int, ...], num_classes: int, attends: bool = False) -> nn.Module:
    return RowNet(input_shape[-1], num_classes, attends)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("method", ["heterofl", "fjord", "ca-hfp"])
def test_clients_train_submodels_in_rounds(method: str, attends: bool) -> None:
    model = f"model={{name: 'tests.pruning.test_recurrent:row_net', options: {{attends: {str(attends).lower()}}}}}"
    scenario = build_scenario(tiny_settings(f"method.name={method}", model))
    assert len(scenario.workload.plan.groups) == (5 if attends else 4)
    state = initial_state(scenario)
    after, report = run_round(scenario, state, InProcessExecutor(scenario.workload))
    assert report.coverage.untrained_share < 1
    assert all(bool(torch.isfinite(value).all()) for value in after.params.values())
    assert sum(not torch.equal(after.params[key], value) for key, value in state.params.items()) > 10
