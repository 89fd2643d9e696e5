"""Compression of updates: sent entries, residuals and bytes, compared with slow and obvious code."""

import doctest
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client import compression, trainer
from raysim.client import update as updates
from raysim.client.assignments import Assignments, Broadcast, LocalRules
from raysim.client.compression import COMPRESSIONS, EightBit, TopK
from raysim.client.hooks import LocalHooks, Report
from raysim.client.trainer import ClientTrainer
from raysim.client.update import RESIDUAL, compressed
from raysim.client.view import ClientView
from raysim.core import tensors
from raysim.core.errors import RunFailedError, SettingError
from raysim.core.tensors import Params
from raysim.methods import resolve as methods
from raysim.pruning import elements
from raysim.pruning.costs import CostTable
from raysim.pruning.masks import Mask
from raysim.pruning.plan import ChannelPlan
from raysim.server.updates import merge
from raysim.simulation.aggregation import classes_owned
from raysim.simulation.assignments import assign
from raysim.simulation.build import build_scenario, check_names
from raysim.simulation.planning import plan_round as plan
from raysim.simulation.state import RoundReport
from raysim.simulation.transition import initial_state
from tests.client.test_packing import MLP
from tests.conftest import settings_of, tiny_settings
from tests.methods import slow_rounds as slow
from tests.oracles import held_entries
from tests.planned import plan_round, state_after

TOP_K = ("compression.name=top-k", "compression.share=0.05")


def draw(**sizes: int) -> Params:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(size, generator=generator, dtype=torch.float64) for key, size in sizes.items()}


def zeros(update: Params) -> Params:
    return {key: torch.zeros_like(moved) for key, moved in update.items()}


def test_bytes_counted_by_hand() -> None:
    assert doctest.testmod(compression) == (0, 4)
    entries = {"weight": 1000, "bias": 24}
    assert TopK(0.1).upload_bytes(entries) == 103 * 4 + 1024 // 8
    assert TopK(0.01).upload_bytes(entries) == 11 * 4 + 11 * 4
    assert TopK(1e-9).upload_bytes(entries) == 4 + 4
    assert EightBit().upload_bytes(entries) == 1024 + 2 * 4


def test_the_greatest_entries_of_the_whole_update_are_sent_and_the_rest_waits() -> None:
    update = draw(weight=90, bias=10)
    sent, left = TopK(0.07).compress(update, zeros(update), np.random.default_rng(0))
    magnitudes = sorted((float(entry.abs()) for moved in update.values() for entry in moved), reverse=True)
    for key, moved in update.items():
        for entry, found, rest in zip(moved.tolist(), sent[key].tolist(), left[key].tolist(), strict=True):
            assert found == (float(np.float32(entry)) if abs(entry) >= magnitudes[6] else 0.0)
            assert found + rest == entry


def test_of_equal_entries_the_first_are_sent() -> None:
    update = {"a": torch.tensor([1.0, -1.0, 0.5]).double(), "b": torch.tensor([1.0, 1.0]).double()}
    sent, _ = TopK(0.6).compress(update, zeros(update), np.random.default_rng(0))
    assert [sent[key].tolist() for key in sent] == [[1.0, -1.0, 0.0], [1.0, 0.0]]


def test_an_entry_that_waits_long_enough_is_sent() -> None:
    update = {"weight": torch.tensor([1.0, 0.4, 0.0]).double()}
    memory, received = zeros(update), []
    for _ in range(4):
        sent, memory = TopK(0.3).compress(update, memory, np.random.default_rng(0))
        received.append(sent["weight"].tolist())
    assert [round_sent.index(max(round_sent)) for round_sent in received] == [0, 0, 1, 0]
    assert received[2][1] == pytest.approx(1.2)


def test_8_bit_is_right_in_the_mean_and_never_off_by_a_level() -> None:
    update = draw(weight=40, bias=3) | {"still": torch.zeros(5, dtype=torch.float64)}
    rng, draws = np.random.default_rng(1), 1000
    rounds = [EightBit().compress(update, {}, rng) for _ in range(draws)]
    for key, moved in update.items():
        scale = float(moved.abs().max()) / 127
        received = torch.stack([sent[key] for sent, memory in rounds if not memory])
        assert len(received) == draws
        assert float((received - moved).abs().max()) <= scale * (1 + 1e-6)
        levels = received / scale if scale else received
        assert float((levels - levels.round()).abs().max()) < 1e-4
        assert float(levels.abs().max()) <= 127 + 1e-4
        assert float((received.mean(0) - moved).abs().max()) <= 5 * 0.5 * scale / draws**0.5


def test_8_bit_keeps_zeros_and_levels_as_they_are() -> None:
    levels = torch.tensor([0.0, 127.0, -127.0, 3.0, 0.0]).double()
    for seed in range(20):
        sent, _ = EightBit().compress({"w": levels * 0.25}, {}, np.random.default_rng(seed))
        assert sent["w"].tolist() == (levels * 0.25).tolist()


@pytest.mark.slow
def test_top_k_equals_a_slow_one_over_three_rounds() -> None:
    """Clients of three widths; what they could not send is added where their masks keep the entry again."""
    scenario = slow.small_scenario(
        "magnitude", *TOP_K, "population.tiers.0.keep_ratio=0.4", "training.weight_decay=0.01"
    )
    plan, residuals, widths = scenario.workload.plan, {}, set()

    def play(round: int, params: Params, report: RoundReport) -> Params:
        cohort, scores = slow.members(scenario, round), slow.l1(plan, params)
        after, masks = [], []
        for member in cohort:
            widths.add(member.keep)
            held = slow.held_by(plan, slow.best(plan, scores, member.keep), params)
            trained, _ = slow.train(scenario, params, member.id, round, held)
            residual = residuals.setdefault(member.id, zeros(params))
            wanted = {key: trained[key] - params[key] * held[key] + residual[key] for key in params}
            sent = slow_top_k(wanted, held, 0.05)
            for key in params:
                residual[key] = torch.where(held[key], wanted[key] - sent[key], residual[key])
            after.append({key: params[key] + sent[key] for key in params})
            masks.append(held)
        return slow.aggregate("global", params, [member.n for member in cohort], after, masks)

    state = slow.agree(scenario, play, rounds=3)
    assert len(widths) >= 3
    assert set(state.clients) == set(residuals)
    for client, residual in residuals.items():
        slow.close(state.clients[client], {f"{RESIDUAL}{key}": value for key, value in residual.items()}, atol=1e-5)


def slow_top_k(wanted: Params, held: Params, share: float) -> Params:
    """All entries of a client in one list, the greatest first."""
    ranked = sorted(
        (
            (-abs(float(value)), key, place)
            for key, tensor in wanted.items()
            for place, value in enumerate(tensor.flatten())
            if bool(held[key].flatten()[place])
        )
    )
    sent = {key: torch.zeros_like(tensor) for key, tensor in wanted.items()}
    for _, key, place in ranked[: int(np.ceil(share * len(ranked)))]:
        sent[key].view(-1)[place] = wanted[key].flatten()[place]
    return sent


def test_entries_that_a_mask_prunes_are_neither_sent_nor_forgotten() -> None:
    scenario = build_scenario(tiny_settings("method.name=fedavg", *TOP_K))
    planned = plan_round(scenario)
    shape = scenario.workload.plan.shapes["0.weight"]
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = Mask(np.ones(scenario.workload.plan.num_units, dtype=np.bool_), elements.pack({"0.weight": kept}))
    waiting = {f"{RESIDUAL}0.weight": torch.full(shape, 100.0)}
    assignment = replace(planned.assignments[0], mask=mask, memory=waiting)
    trained = ClientTrainer(scenario.workload).train(Assignments.of_rows([assignment]), planned.broadcast)
    update = trained.sums["update"].value("0.weight")
    count = scenario.method.rules.compression.count(sum(scenario.costs.sent_entries(mask).values()))
    left = trained.memories[assignment.client]
    assert not update[~kept].any()
    assert bool((left[f"{RESIDUAL}0.weight"][~kept] == 100).all())
    assert sum(int((trained.sums["update"].value(key) != 0).sum()) for key in planned.broadcast.params) == count
    assert int((update != 0).sum()) == min(count, int(kept.sum()))
    assert int((left[f"{RESIDUAL}0.weight"][kept] < 50).sum()) == min(count, int(kept.sum()))


def test_sizes_of_an_update_counted_by_hand() -> None:
    """A convolution of 6 filters with BatchNorm and a classifier; half of the filters stay, and two entries less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    traced = ChannelPlan.trace(model, torch.randn(2, 1, 8, 8))
    costs, half = CostTable(model, traced, (1, 8, 8)), np.arange(traced.num_units) < 3
    pruned = torch.ones(6, 1, 3, 3, dtype=torch.bool)
    pruned[0, 0, 0, :2] = False
    masks = {"whole": Mask(half), "hybrid": Mask(half, elements.pack({"0.weight": pruned}))}
    entries = 3 * 9 + 3 + 3 + 3 + 4 * 3 * 36 + 4
    statistics = 4 * (3 + 3)
    for name, less in (("whole", 0), ("hybrid", 2)):
        found = costs.sent_entries(masks[name])
        assert sum(found.values()) == entries - less
        assert found["0.weight"] == 27 - less
        plain = methods.resolve("magnitude", {}, build_scenario(tiny_settings()).workload.local)
        smaller = replace(plain, rules=replace(plain.rules, compression=EightBit()))
        assert methods.update_bytes(plain, costs, masks[name]) == 4 * (entries - less) + statistics
        assert methods.update_bytes(smaller, costs, masks[name]) == entries - less + 6 * 4 + statistics


def test_running_statistics_are_sent_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    values = {key: torch.randn(tensor.shape).double() for key, tensor in model.state_dict().items()}
    sent, memory = of_client(TopK(0.01), values, model)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(sent[name], values[name])
    assert sum(int((sent[name] != 0).sum()) for name, _ in model.named_parameters()) == 1
    assert set(memory) == {f"{RESIDUAL}{name}" for name, _ in model.named_parameters()}


def of_client(how: compression.Compression, values: Params, model: nn.Module) -> tuple[Params, Params]:
    broadcast = Broadcast(1, dict(model.state_dict()), LocalRules(compression=how))
    return compressed(how, values, model, {}, {}, SimpleNamespace(client=3, memory={}), broadcast, seed=0)


def test_a_parameter_with_two_names_is_sent_once_and_moves_under_both() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    values = {key: torch.randn(tensor.shape).double() for key, tensor in model.state_dict().items()}
    values["2.weight"] = values["0.weight"]
    sent, _ = of_client(EightBit(), values, model)
    assert torch.equal(sent["0.weight"], sent["2.weight"])
    assert not torch.equal(sent["0.weight"], values["0.weight"])


class Own:
    """A compression of a user's own, made of what it returns."""

    keeps: frozenset[str] = frozenset()

    def __init__(self, returns=lambda update, memory: (update, {}), num_bytes=lambda entries: 8, remembers=False):
        self.returns, self.num_bytes, self.remembers = returns, num_bytes, remembers

    def compress(self, update, memory, generator):
        return self.returns(update, memory)

    def upload_bytes(self, entries):
        return self.num_bytes(entries)


def first_lost(update: Params) -> Params:
    return dict(list(update.items())[1:])


def divided_by_zero(entries: dict[str, int]) -> float:
    return 1 / 0


NOTHING = Own(returns=lambda update, memory: None)
LOSES = Own(returns=lambda update, memory: (first_lost(update), {}))
SHORTENS = Own(returns=lambda update, memory: ({key: moved[1:] for key, moved in update.items()}, {}))
LISTS = Own(returns=lambda update, memory: ({key: moved.tolist() for key, moved in update.items()}, {}))
INFINITE = Own(returns=lambda update, memory: ({key: moved / 0 for key, moved in update.items()}, {}))
KEEPS = Own(returns=lambda update, memory: (update, update))
FORGETS = Own(returns=lambda update, memory: (update, {}), remembers=True)


@pytest.mark.parametrize("pack", [1, 4])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NOTHING", "compress returns NoneType; allowed: (update, memory)"),
        ("LOSES", "compress returns an update of other entries; allowed: those that it is given"),
        ("SHORTENS", "compress returns an update of other entries; allowed: those that it is given"),
        ("LISTS", "compress returns an update of other entries; allowed: those that it is given"),
        ("INFINITE", "compress returns entries that are not finite; allowed: finite numbers"),
        ("KEEPS", "compress returns a memory, but remembers is false; allowed: an empty memory"),
        ("FORGETS", "compress returns a memory of other entries; allowed: those of the update"),
    ],
)
def test_what_a_compression_of_the_users_own_returns_is_checked(name: str, message: str, pack: int) -> None:
    path = f"{__name__}:{name}"
    packs = ("population.clients=40", "selection.clients_per_round=12", f"training.pack={pack}")
    scenario = build_scenario(tiny_settings(*MLP, *packs, f"compression.name={path}"))
    with pytest.raises(RunFailedError) as failed:
        state_after(scenario, 1)
    assert failed.value.cause == f"compression.name={path!r}: {message}"
    assert failed.value.client >= 0
    assert failed.value.details == ""


HALF_BYTES, NEGATIVE, NO_BYTES, TRUE = (
    Own(num_bytes=lambda _, found=found: found) for found in (8.5, -1, None, True)
)
FAILS = Own(num_bytes=divided_by_zero)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HALF_BYTES", "upload_bytes returns 8.5"),
        ("NEGATIVE", "upload_bytes returns -1"),
        ("NO_BYTES", "upload_bytes returns None"),
        ("TRUE", "upload_bytes returns True"),
        ("FAILS", "upload_bytes raises ZeroDivisionError: division by zero"),
    ],
)
def test_the_bytes_of_a_compression_of_the_users_own_are_checked_before_training(name: str, message: str) -> None:
    path = f"{__name__}:{name}"
    with pytest.raises(SettingError) as refused:
        build_scenario(tiny_settings(f"compression.name={path}"))
    assert str(refused.value) == f"compression.name={path!r}: {message}; allowed: a whole number of bytes, 0 or more"


def test_a_method_that_remembers_under_the_compressions_name_is_refused() -> None:
    def hook(view: ClientView) -> LocalHooks:
        return LocalHooks(finish=(lambda: Report(memory={f"{RESIDUAL}0.weight": torch.zeros(1)}),))

    scenario = build_scenario(tiny_settings("method.name=fedavg", *TOP_K))
    planned = plan_round(scenario)
    rules = replace(planned.broadcast.rules, hooks=(hook,))
    with pytest.raises(RunFailedError, match=r"remembers 'residual/0.weight' .* that do not begin with 'residual/'"):
        ClientTrainer(scenario.workload).train(planned.assignments, replace(planned.broadcast, rules=rules))


def test_an_update_that_is_not_finite_is_divergence() -> None:
    model = nn.Linear(4, 3)
    values = {"weight": torch.full((3, 4), torch.nan).double(), "bias": torch.zeros(3).double()}
    with pytest.raises(OverflowError, match="not finite"):
        of_client(TopK(), values, model)
    with pytest.raises(RunFailedError, match="diverged"):
        state_after(build_scenario(tiny_settings(*TOP_K, "training.learning_rate=1e30")), 1)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_clients_of_a_pack_send_what_they_send_alone(share: float) -> None:
    overrides = ("population.clients=40", "selection.clients_per_round=12", "training.pack=4")
    scenario = build_scenario(tiny_settings(*MLP, *overrides, "compression.name=top-k", f"compression.share={share}"))
    state = initial_state(scenario)
    assignments, broadcast = assign(scenario, state, plan(scenario, state).ended[0].counted)
    assert (assignments.packs >= 0).sum() >= 6
    whole = ClientTrainer(scenario.workload).train(assignments, broadcast)
    chunks = [ClientTrainer(scenario.workload).train(chunk, broadcast) for chunk in assignments.chunks([0.5, 0.5])]
    together = merge(chunks)
    assert tensors.digest(together.sums["update"].totals) == tensors.digest(whole.sums["update"].totals)
    assert set(whole.memories) == set(assignments.clients.tolist())
    for client, memory in whole.memories.items():
        assert tensors.digest(memory) == tensors.digest(together.memories[client])
    alone = ClientTrainer(scenario.workload).train(replace(assignments, packs=assignments.packs * 0 - 1), broadcast)
    if share == 1.0:  # else a last bit may decide what is sent
        for key in broadcast.params:
            torch.testing.assert_close(
                whole.sums["update"].value(key), alone.sums["update"].value(key), rtol=1e-4, atol=1e-4
            )


class Elsewhere(torch.Tensor):
    """Stands for a tensor in the memory of a GPU."""

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("pack", [1, 4])
def test_what_clients_remember_leaves_the_gpu(monkeypatch: pytest.MonkeyPatch, pack: int) -> None:
    def on_gpu(*arguments: object, **options: object) -> tuple[Params, Params]:
        sent, memory = compressed(*arguments, **options)
        return sent, {key: tensor.as_subclass(Elsewhere) for key, tensor in memory.items()}

    for module in (trainer, updates):
        monkeypatch.setattr(module, "compressed", on_gpu)
    overrides = ("population.clients=40", "selection.clients_per_round=12", f"training.pack={pack}")
    scenario = build_scenario(tiny_settings(*MLP, *overrides, *TOP_K))
    state = initial_state(scenario)
    assignments, broadcast = assign(scenario, state, plan(scenario, state).ended[0].counted)
    assert (assignments.packs >= 0).any() == (pack > 1)
    trained = ClientTrainer(scenario.workload).train(assignments, broadcast)
    kinds = {type(tensor) for memory in trained.memories.values() for tensor in memory.values()}
    assert kinds == {torch.Tensor}


class Adds(EightBit):
    """Adds one to every entry, as noise for privacy would."""

    def compress(self, update, memory, generator):
        return {key: moved + 1 for key, moved in update.items()}, {}


def test_noise_leaves_rows_of_classes_that_a_client_does_not_own_as_they_are() -> None:
    scenario = build_scenario(settings_of("heterofl", "data.partition={name: shards, shards_per_client: 2}"))
    planned = plan_round(scenario)
    broadcast = replace(planned.broadcast, rules=replace(planned.broadcast.rules, compression=Adds()))
    (one, *_) = planned.assignments.apart()
    trained = ClientTrainer(scenario.workload).train(one, broadcast)
    (owned,) = torch.from_numpy(classes_owned(scenario, one.cohort))
    assert not owned.all()
    for slot in scenario.workload.plan.outputs.slots:
        moved = trained.sums["update"].value(slot.key)
        assert not moved[~owned].any()
        assert moved[owned].any()


def test_estimates_from_displacements_see_what_the_server_receives() -> None:
    scenario = build_scenario(settings_of("ca-hfp", "method.estimator=variation", *TOP_K))
    planned = plan_round(scenario)
    (one,) = planned.assignments.apart()[:1]
    trained = ClientTrainer(scenario.workload).train(one, planned.broadcast)
    update, gradient = trained.sums["update"], trained.sums["gradient"]
    assert sum(int((update.value(key) != 0).sum()) for key in gradient.totals) > 0
    for key in gradient.totals:
        assert torch.equal(update.value(key) != 0, gradient.value(key) != 0)


@pytest.mark.slow
def test_what_is_trained_before_round_1_is_sent_whole() -> None:
    explored = [state_after(build_scenario(settings_of("autoflip", *more)), 1) for more in ((), TOP_K)]
    plain, smaller = (state.totals for state in explored)
    assert plain.preparation_bytes == smaller.preparation_bytes > 0
    assert smaller.up_bytes < plain.up_bytes


@pytest.mark.slow
def test_scaffolds_variates_are_sent_whole() -> None:
    plain, smaller = (build_scenario(settings_of("scaffold", *more)) for more in ((), TOP_K))
    loads = [plan_round(scenario).load for scenario in (plain, smaller)]
    masks = plan_round(plain).masks
    whole = masks.each(lambda mask: plain.costs.of(mask).model_bytes)
    sent = masks.each(lambda mask: methods.update_bytes(smaller.method, smaller.costs, mask))
    assert (loads[0].up_bytes == 2 * whole).all()
    assert (loads[1].up_bytes == whole + sent).all()
    assert (loads[0].down_bytes == loads[1].down_bytes).all()
    memory = state_after(smaller, 2).clients
    assert memory
    for tensors_of_client in memory.values():
        assert {key.partition("/")[0] for key in tensors_of_client} == {"variate", "residual"}


@pytest.mark.slow
def test_smaller_updates_leave_room_for_wider_submodels() -> None:
    link = ("keep_ratio=1.0", "up_bytes_per_s=5e+3")
    slow_links = [f"population.tiers.{tier}.{each}" for tier in range(4) for each in link]
    solved = ("budget.rule=solved", "budget.deadline_s=0.7", *slow_links)
    plain, smaller = (build_scenario(settings_of("magnitude", *solved, *more)) for more in ((), TOP_K))
    before, after = plain.budget.ladder, smaller.budget.ladder
    assert (after.up_bytes < before.up_bytes).all()
    assert (after.down_bytes == before.down_bytes).all()
    parameters = sum(parameter.numel() for parameter in plain.workload.model.parameters())
    assert (after.state_bytes - before.state_bytes == 4 * parameters).all(), "of all entries, whatever the mask"
    cohorts = [plan(scenario, initial_state(scenario)).ended[0].cohort for scenario in (plain, smaller)]
    assert (cohorts[1].keep_ratios >= cohorts[0].keep_ratios).all()
    assert cohorts[1].keep_ratios.sum() > cohorts[0].keep_ratios.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("compression.name=topk",), r"compression.name='topk' is unknown; known: top-k, 8-bit"),
        (("compression.share=0.1",), r"share=0.1 has no effect with name=None; it belongs to 'top-k'"),
        (("compression.name=8-bit", "compression.share=0.1"), r"share=0.1 has no effect with name='8-bit'"),
        (
            ("compression.name=top-k", "compression.share=0"),
            r"compression.share=0 is not allowed; allowed: .*greater",
        ),
        (("compression.name=top-k", "compression.rate=1"), r"compression.rate=1 is not a setting; did you mean"),
        (("compression.name=math:pi",), r"compression.name='math:pi' is float; allowed: an object with compress"),
        (("compression.name=raysim.client.compression:TopK",), r"is .*; allowed: an object with compress"),
        (("compression.name=nowhere:it",), r"compression.name='nowhere:it': module 'nowhere' cannot be imported"),
    ],
)
def test_what_is_not_allowed_is_refused_before_anything_is_loaded(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_names(tiny_settings(*settings))


def test_every_compression_names_its_laws_and_whether_it_remembers() -> None:
    for name, build in COMPRESSIONS.items():
        found = build()
        assert isinstance(found, compression.Compression), name
        assert compression.EQUALS_FEDAVG not in found.keeps
        update = draw(weight=20)
        _, left = found.compress(update, zeros(update) if found.remembers else {}, np.random.default_rng(0))
        assert bool(left) == found.remembers


def test_a_narrow_client_sends_its_own_entries_alone() -> None:
    """As the oracle of held entries has it."""
    scenario = build_scenario(settings_of("magnitude", *TOP_K))
    planned = plan_round(scenario)
    place = int(np.argmin(planned.cohort.keep_ratios))
    one = planned.assignments.take(np.array([place]))
    update = ClientTrainer(scenario.workload).train(one, planned.broadcast).sums["update"]
    held = held_entries(scenario.workload.plan, planned.masks[place], planned.broadcast.params)
    assert not all(bool(entries.all()) for entries in held.values())
    for key, entries in held.items():
        assert not update.value(key)[~entries].any()
