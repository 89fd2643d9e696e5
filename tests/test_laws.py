"""The laws of the house, each stated once, over all methods, models, fills or partitions."""

import copy
import functools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as families

from raysim.client import compression
from raysim.client.assignments import Assignments
from raysim.client.compression import COMPRESSIONS
from raysim.client.trainer import ClientTrainer
from raysim.clock import outcomes, serialization
from raysim.clock.modes import ASYNC, DEADLINE, OVER_SELECTION, ClockRules
from raysim.core import tensors
from raysim.data.batches import batch_slices
from raysim.data.partition import PARTITIONS, partition
from raysim.data.rules import PartitionOptions
from raysim.executors import in_process
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.table import MAY_DIE, METHODS, RETURNS
from raysim.models import cost, zoo
from raysim.population import population
from raysim.population.profiles import DeviceProfile
from raysim.population.sampling import listed
from raysim.pruning import coverage, masks, submodel
from raysim.pruning.plan import ChannelPlan
from raysim.pruning.proof import randomise
from raysim.pruning.significance import channel_sums, first_channels
from raysim.server.fill import FILLS
from raysim.server.updates import merge
from raysim.simulation import checkpoint, fedavg, planning, preparation, records
from raysim.simulation.build import build_scenario
from raysim.simulation.cohort import choose_masks, load_of, schedule_cohort, view_of
from raysim.simulation.forecast import forecast
from raysim.simulation.loop import run_rounds
from raysim.simulation.participants import cohort_of
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import DenseTotals, RoundReport, ServerState, Storage
from raysim.simulation.transition import initial_state
from tests.clocked import FRAIL, MODES, clocked, with_figures
from tests.clocked import played as clocked_rounds
from tests.conftest import INPUTS, NEEDED_BY, settings_of, tiny_settings
from tests.oracles import (
    DEPTHWISE_TRAIN_FLOPS,
    BranchNet,
    DepthwiseNet,
    GroupedNet,
    JoinedNet,
    LayerNormNet,
    SharedNet,
    held_entries,
    norms_over_kept_channels,
    random_mask,
)
from tests.planned import plan_round, view_for

COMPRESSED = {
    "top-k": ("compression.name=top-k", "compression.share=0.1"),
    "8-bit": ("compression.name=8-bit",),
}
"""Settings of every compression."""

RESIDUAL = ("model.name=tests.methods.test_rounds_nested:residual", "model.options={}")
"""A model with blocks that can be dropped."""

DENSE_TIERS = tuple(f"population.tiers.{tier}.keep_ratio=1.0" for tier in range(4))


def zoo_model(name: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    return zoo.build(name, options, zoo.DataForm(INPUTS[name], 10), seed=0), INPUTS[name]


FAMILIES = {
    "resnet18": families.resnet18,
    "wide_resnet50_2": families.wide_resnet50_2,
    "densenet121": families.densenet121,
    "mobilenet_v2": families.mobilenet_v2,
    "mobilenet_v3_small": families.mobilenet_v3_small,
    "efficientnet_b0": families.efficientnet_b0,
    "squeezenet1_1": families.squeezenet1_1,
    "regnet_x_400mf": families.regnet_x_400mf,
    "regnet_y_400mf": families.regnet_y_400mf,
    "googlenet": functools.partial(families.googlenet, aux_logits=False, init_weights=False),
    "mnasnet0_5": families.mnasnet0_5,
    "convnext_tiny": families.convnext_tiny,
    "vgg11": families.vgg11,
    "vgg11_bn": families.vgg11_bn,
    "vit": functools.partial(
        families.VisionTransformer, 32, 16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48
    ),
}
"""torchvision's families, the smallest of each."""

FEW_FAMILIES = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "vit")
"""Residual, depthwise, with squeezed layers, branched, and of attention: the others are like one of them."""

NETWORKS = {
    **{name: (lambda name=name: zoo_model(name)) for name in INPUTS},
    **{name: (lambda build=build: (build(num_classes=10), (3, 32, 32))) for name, build in FAMILIES.items()},
    **{f"convnet {norm}": functools.partial(zoo_model, "convnet", norm=norm) for norm in ("batch", "group")},
    "depthwise": lambda: (DepthwiseNet(), (3, 8, 8)),
    "branches": lambda: (BranchNet(), (3, 8, 8)),
    "grouped": lambda: (GroupedNet(), (3, 8, 8)),
    "layer norm": lambda: (LayerNormNet(), (3, 8, 8)),
    "shared": lambda: (SharedNet(), (3, 8, 8)),
    "joined": lambda: (JoinedNet(), (3, 8, 8)),
}


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    if name in FAMILIES and name not in FEW_FAMILIES:
        return [pytest.mark.long]
    return [pytest.mark.slow] if name in ("vgg16", "resnet", "resnet32", *FAMILIES) else []


def network_cases() -> list[object]:
    """Every network with everything prunable; those of the zoo also with their own choice of whole layers."""
    return [
        pytest.param(
            (name, default),
            id=f"{name}-{'default' if default else 'all'}",
            marks=marks_of(name),
        )
        for name in NETWORKS
        for default in ((True, False) if name in INPUTS else (False,))
    ]


@pytest.fixture(scope="module", params=network_cases())
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, ChannelPlan, tuple[int, ...]]:
    name, default = request.param
    model, shape = NETWORKS[name]()
    keep_whole = zoo.MODELS[name].keep_whole if default else ()
    return model, ChannelPlan.trace(model, torch.randn(2, *shape), keep_whole), shape


def played(scenario: Scenario, count: int = 2) -> ServerState:
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(count):
        state, _ = run_round(scenario, state, executor)
    return state


def prepared(scenario: Scenario) -> ServerState:
    return preparation.prepare(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))


def fresh_digest_of(method: str, *overrides: str) -> str:
    return tensors.digest(played(build_scenario(settings_of(method, *overrides))).params)


digest_of = functools.cache(fresh_digest_of)


@functools.cache
def digest_in(mode: str, method: str, *overrides: str) -> str:
    """Digest of a run on frail devices in a clock mode."""
    return tensors.digest(clocked_rounds(clocked(method, mode, *FRAIL, *overrides))[0].params)


@pytest.mark.slow
def test_law_1_extract_then_reconstruct(network: tuple[nn.Module, ChannelPlan, tuple[int, ...]]) -> None:
    model, plan, _ = network
    mask = random_mask(plan, seed=1)
    full = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trained = {key: tensor + 1 for key, tensor in plan.extract(model, mask).state_dict().items()}
    before = {key: tensor.clone() for key, tensor in full.items()}
    result, covered = plan.reconstruct(trained, into=full, mask=mask)
    in_place = submodel.reconstruct(trained, submodel.cut_for(plan, mask), full, out=before)
    held = held_entries(plan, mask, full)
    counts = coverage.count_coverage(plan, [mask], np.array([7]))
    assert in_place is before
    for key, tensor in full.items():
        assert torch.equal(tensor, model.state_dict()[key]), "reconstruct must not change what it reconstructs into"
        assert torch.equal(in_place[key], result[key]), key
        assert torch.equal(covered[key].expand(tensor.shape), held[key]), key
        assert torch.equal(result[key], torch.where(held[key], tensor + 1, tensor)), key
        assert torch.equal(counts[key].expand(tensor.shape) == 7, held[key]), key
        assert torch.equal(counts[key].expand(tensor.shape) == 0, ~held[key]), key


@pytest.mark.slow
def test_law_2_submodel_computes_the_full_model_with_zeros(
    network: tuple[nn.Module, ChannelPlan, tuple[int, ...]],
) -> None:
    """Norms that mix channels (LayerNorm, GroupNorm) take their statistics over the kept channels on both sides."""
    model, plan, shape = network
    model = copy.deepcopy(model).double().eval()
    randomise(model, torch.Generator().manual_seed(1))
    mask = random_mask(plan, seed=2)
    inputs = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    params = dict(model.state_dict())
    held = held_entries(plan, mask, params)
    with torch.no_grad():
        small = plan.extract(model, mask)(inputs)
        norms_over_kept_channels(model, held)
        for key, tensor in params.items():
            tensor.mul_(held[key])
        expected = model(inputs)
    assert plan.groups
    assert float(expected.std()) > 0
    torch.testing.assert_close(small, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_law_3_keep_ratio_1_is_fedavg(name: str) -> None:
    needed = [setting for setting in NEEDED_BY.get(name, ()) if setting.startswith("training")]
    same = digest_of(name, *DENSE_TIERS) == digest_of("fedavg", *needed)
    assert same == ("equals fedavg at keep 1" in METHODS[name].claims)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in METHODS
        for mode in MODES
        if "equals fedavg at keep 1" in METHODS[name].claims
        and mode != "sync"
        and not (mode == "async" and METHODS[name].one_version)
    ],
)
def test_law_3_holds_in_every_clock_mode(name: str, mode: str) -> None:
    slower = (*DENSE_TIERS, *(f"population.tiers.{tier}.battery_j=30.0" for tier in range(4)))
    deadline = ("clock.deadline_s=3.0",) if "clock.mode=deadline" in MODES[mode] else ()
    assert digest_in(mode, name, *slower, *deadline) == digest_in(mode, "fedavg", *slower, *deadline)
    assert digest_in(mode, "fedavg", *slower, *deadline) != digest_in("sync", "fedavg", *slower), (
        "some should be late"
    )


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("estimator", ["fisher", "variation"])
def test_law_3_holds_for_every_fill_and_estimator(fill: str, estimator: str) -> None:
    options = (f"method.fill={fill}", f"method.estimator={estimator}")
    assert digest_of("ca-hfp", *options, *DENSE_TIERS) == digest_of("fedavg")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "magnitude", "ca-hfp"])
def test_law_3_holds_with_batch_norm(name: str) -> None:
    resnet = ("model.name=resnet32", "model.options={}", "rounds=1")
    assert digest_of(name, *resnet, *DENSE_TIERS) == digest_of("fedavg", *resnet)


NARROW = tuple(f"population.tiers.{tier}.keep_ratio=0.5" for tier in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_law_4_holds_in_every_clock_mode(mode: str) -> None:
    """Everybody trains the first half of the channels, in whatever version: the rest stays as it was."""
    scenario = clocked("heterofl", mode, *FRAIL, *NARROW)
    before = initial_state(scenario).params
    after, reports = clocked_rounds(scenario)
    plan = scenario.workload.plan
    held = held_entries(plan, masks.keep_top(plan, first_channels(plan), 0.5), before)
    assert {outcome for report in reports for outcome in report.clients["fate"]} > {outcomes.COUNTED}
    for key, value in before.items():
        assert torch.equal(after.params[key][~held[key]], value[~held[key]])
    assert sum(not torch.equal(after.params[key][held[key]], value[held[key]]) for key, value in before.items()) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
def test_law_4_what_nobody_covers_keeps_its_value(fill: str) -> None:
    scenario = build_scenario(tiny_settings("method.name=magnitude", f"method.fill={fill}", *NARROW))
    state = initial_state(scenario)
    after, report = run_round(scenario, state, InProcessExecutor(scenario.workload))
    mask = plan_round(scenario, state).masks[0]
    held = held_entries(scenario.workload.plan, mask, state.params)
    kept_value = all(torch.equal(after.params[key][~held[key]], state.params[key][~held[key]]) for key in held)
    assert report.coverage.untrained_share > 0.5
    assert kept_value == (fill != "zero"), "zero-fill is the one rule that is exempt"
    assert all(not torch.equal(after.params[key][held[key]], state.params[key][held[key]]) for key in held)


THIRTY_ROUNDS = (
    "rounds=30",
    "population.clients=20",
    "selection.clients_per_round=5",
    "model={name: 'tests.oracles:norm_net', options: {channels: [6, 8]}}",
    "training.learning_rate=0.05",
    "data.max_train_examples=240",
    "evaluation.every=30",
    "evaluation.max_examples=20",
    "evaluation.client_share=0.0",
)
SPARSER = {
    "prunefl": ("method.options={reconfigure_rounds: 5, initial_rounds: 5}",),
    "feddst": ("method.options={readjust_rounds: 2, sparsity: 0.95}",),
    "fedtiny": ("method.options={readjust_rounds: 2, sparsity: 0.95, pool_size: 2, blocks: 2}",),
    "fedmef": ("method.options={readjust_rounds: 2, sparsity: 0.95}",),
    "fedrts": ("method.options={readjust_rounds: 2, sparsity: 0.95}",),
    "autoflip": ("method.options={exploration_epochs: 3}",),
}
"""Settings under which masks of a sparse global model change, and channels die where they may."""


@functools.cache
def after_thirty_rounds(name: str, *more: str) -> tuple[np.ndarray, bool]:
    """Which channels have a zero gradient on every training row; and whether a weight was zero and came back."""
    epochs = NEEDED_BY["dapperfl"] if name == "dapperfl" else ()
    scenario = build_scenario(tiny_settings(f"method.name={name}", *THIRTY_ROUNDS, *epochs, *more))
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    returned, zero = False, {}
    for _ in range(30):
        state, _ = run_round(scenario, state, executor)
        now = {key: state.params[key] == 0 for key in state.params if key.endswith((".weight", ".bias"))}
        returned |= any(bool((was & ~now[key]).any()) for key, was in zero.items())
        zero = now
    return without_gradient_on_any_row(scenario, state), returned


def without_gradient_on_any_row(scenario: Scenario, state: ServerState) -> np.ndarray:
    """Each row's loss has a random weight, so that gradients of several rows do not cancel out."""
    model = copy.deepcopy(scenario.workload.model).train()  # as clients train it: with statistics of the batch
    model.load_state_dict(state.params)
    inputs, labels = scenario.workload.data.train_rows(np.arange(len(scenario.workload.data.train_targets)))
    weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    (weights @ nn.functional.cross_entropy(model(inputs), labels, reduction="none")).backward()
    sizes = {name: parameter.grad.abs() for name, parameter in model.named_parameters()}
    return channel_sums(scenario.workload.plan, sizes) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [*((name,) for name in METHODS if not METHODS[name].needs_adapters), ("autoflip", "method.fill=zero")],
    ids="-".join,
)
def test_law_4_no_channel_dies_of_what_clients_do_not_train(case: tuple[str, ...]) -> None:
    """With 5 of 20 clients and BatchNorm; where the global model is sparse, a pruned weight comes back."""
    name, *more = case
    dead, returned = after_thirty_rounds(name, *SPARSER.get(name, ()), *more)
    killed = dead & ~after_thirty_rounds("fedavg")[0]
    claims, fills_zero = METHODS[name].claims, "method.fill=zero" in more
    assert bool(killed.any()) == (MAY_DIE in claims or fills_zero), "an exemption that is not needed is none"
    assert returned or not (RETURNS in claims or fills_zero)


@pytest.mark.parametrize("keep_ratio", [1e-9, 0.05, 0.26, 0.5, 0.999, 1.0])
def test_law_5_a_unit_stays_in_every_group(keep_ratio: float, tiny_scenario: Scenario) -> None:
    plan = tiny_scenario.workload.plan
    mask = masks.keep_top(plan, np.random.default_rng(0).random(plan.num_units), keep_ratio)
    for group in plan.groups:
        kept = int(mask.kept[plan.units[group.name]].sum())
        assert kept == max(1, int(np.ceil(keep_ratio * group.size - 1e-9)))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_law_5_masks_nest(name: str) -> None:
    now = ("method.warmup_rounds=0",) if "warmup_rounds" in METHODS[name].reads else ()
    scenario = build_scenario(settings_of(name, *now))
    view = view_for(scenario, played(scenario, 1), round=2, clients=6)
    ratios = np.array([0.2, 0.2, 0.5, 0.5, 0.8, 0.8])
    chosen, _ = choose_masks(scenario, replace(view, cohort=replace(view.cohort, keep_ratios=ratios)))
    held = [np.concatenate([mask.kept, *map(np.unpackbits, mask.elements.values())]) for mask in chosen]
    nested = all((held[i] <= held[i + 1]).all() for i in range(5)) and held[0].sum() < held[5].sum()
    assert nested == ("nested masks" in METHODS[name].claims)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [*((name,) for name in METHODS), ("ca-hfp", "method.estimator=variation")], ids="-".join
)
def test_law_6_order_and_grouping_change_nothing(method: tuple[str, ...]) -> None:
    scenario = build_scenario(settings_of(*method, "selection.clients_per_round=5"))
    planned = plan_round(scenario, prepared(scenario))
    assignments, broadcast = planned.assignments, planned.broadcast
    together = merge([ClientTrainer(scenario.workload).train(assignments, broadcast)])
    fresh = ClientTrainer(scenario.workload)
    apart = merge([fresh.train(assignments.take(np.array(chunk)), broadcast) for chunk in ([4], [2, 0], [1, 3])])
    for quantity, total in together.sums.items():
        for key, fixed in total.totals.items():
            assert torch.equal(fixed, apart.sums[quantity].totals[key]), (quantity, key)
    for column, values in together.clients.items():
        np.testing.assert_array_equal(values, apart.clients[column])
    np.testing.assert_array_equal(together.channel_sums, apart.channel_sums)
    np.testing.assert_array_equal(together.kept, apart.kept)
    for client, memory in together.memories.items():
        assert tensors.digest(memory) == tensors.digest(apart.memories[client])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ca-hfp", "autoflip", "fedmp"])
def test_law_6_holds_in_every_clock_mode(mode: str, name: str) -> None:
    """Whoever really finishes first: rounds whose clients are trained backwards, one by one, are the same."""
    scenario = clocked(name, mode, *FRAIL)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    other, backwards = state, Backwards(scenario.workload)
    for _ in range(3):
        state, report = run_round(scenario, state, executor)
        other, same = run_round(scenario, other, backwards)
        assert_same_report(report, same)
    assert tensors.digest(other.params) == tensors.digest(state.params)
    assert tensors.digest(other.memory) == tensors.digest(state.memory)


class Backwards(InProcessExecutor):
    """Trains the newest version first, in it the last client first, each by itself."""

    def train_versions(self, groups):
        trained = [
            merge([self._trainer.train(Assignments.of_rows([one]), broadcast) for one in reversed(list(assignments))])
            for assignments, broadcast in reversed(groups)
        ]
        return trained[::-1]


def assert_same_report(ours: RoundReport, theirs: RoundReport) -> None:
    for name in ("round", "round_s", "totals", "submodel", "score", "coverage"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for table in ("clients", "channels"):
        mine, yours = getattr(ours, table), getattr(theirs, table)
        assert set(mine) == set(yours)
        for column, values in mine.items():
            np.testing.assert_array_equal(values, yours[column])


@pytest.mark.slow
def test_law_7_costs_grow_with_width_and_are_those_of_the_submodel(
    network: tuple[nn.Module, ChannelPlan, tuple[int, ...]],
) -> None:
    from raysim.pruning.costs import CostTable

    model, plan, shape = network
    table = CostTable(model, plan, shape)
    scores = np.random.default_rng(0).random(plan.num_units)
    ladder = [masks.keep_top(plan, scores, ratio) for ratio in (0.1, 0.5, 1.0)]
    costs = [table.of(mask) for mask in ladder]
    for quantity in ("parameters", "model_bytes", "train_flops", "activation_bytes"):
        values = [getattr(each, quantity) for each in costs]
        assert values == sorted(values), quantity
        assert values[0] < values[-1], quantity
    small = submodel.extract(model, plan, ladder[1])
    assert cost.count(small, shape) == costs[1]
    assert costs[1].parameters == sum(parameter.numel() for parameter in small.parameters())
    assert costs[-1] == table.dense


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_law_7_without_groups_pytorchs_own_count_is_right(name: str) -> None:
    model, shape = zoo_model(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(4, *shape)).sum().backward()
    assert cost.count(model, shape).train_flops == counter.get_total_flops() // 4


def test_law_7_a_depthwise_net_counted_by_hand() -> None:
    assert cost.count(DepthwiseNet(), (3, 8, 8)).train_flops == DEPTHWISE_TRAIN_FLOPS


OBEYS_BUDGETS = [
    *((name,) for name in METHODS if not METHODS[name].ignores_budgets),
    ("heterofl", *COMPRESSED["top-k"]),
    ("dapperfl", *COMPRESSED["8-bit"]),
]


@functools.cache
def solved_scenario(name: str, *more: str) -> Scenario:
    """Ten clients, a device of its own each, and budgets that nothing limits yet."""
    tier = (
        "population.tiers=[{name: any, share: 1.0, flops_per_s: 1e8, down_bytes_per_s: 1e5, up_bytes_per_s: 5e4, "
        "latency_s: 0.01, step_overhead_s: 1e-4, memory_bytes_per_s: 1e9, link_drift: 0.3, compute_spread: 0.8, "
        "link_spread: 0.8}]"
    )
    solved = ("population.clients=10", tier, "budget.rule=solved", "budget.deadline_s=1e9")
    return build_scenario(settings_of(name, *solved, *more))


def limited_scenario(settings: tuple[str, ...], limit: str) -> Scenario:
    """The same where one limit keeps some clients from the full model."""
    scenario = solved_scenario(*settings)
    needs = needs_at_rungs(scenario)[limit]
    if limit == "deadline":
        deadline_s = float(np.quantile(needs, 0.4))
        return replace(scenario, budget=replace(scenario.budget, deadline_s=deadline_s))
    column = {"memory": "memory_bytes", "data cap": "data_cap_bytes"}[limit]
    owners = scenario.workload.population
    limits = np.linspace(0.9 * needs.min(), 1.1 * needs.max(), len(owners))
    devices = replace(owners.devices, figures={**owners.devices.figures, column: limits})
    workload = replace(scenario.workload, population=replace(owners, devices=devices))
    return replace(scenario, workload=workload)


def needs_at_rungs(scenario: Scenario) -> dict[str, np.ndarray]:
    """What each client takes on each rung, `(rungs, clients)`: by the clock, and for its largest batch."""
    method = scenario.method  # FjORD draws widths: its budget is one for the widest
    scenario = replace(scenario, method=replace(method, load=method.most_load or method.load))
    size, found = len(scenario.workload.population), []
    for keep_ratio in scenario.budget.ladder.keep_ratios:
        ratios = np.full(size, keep_ratio)
        members = cohort_of(scenario, np.arange(size), round=1)
        view = view_of(scenario, initial_state(scenario), replace(members, keep_ratios=ratios, budgets=ratios))
        chosen, _ = choose_masks(scenario, view)
        load = load_of(scenario, view, chosen)
        costs = [scenario.costs.of(mask) for mask in chosen]
        batches = [batch_slices(int(rows), view.local.batch_size) for rows in view.examples]
        largest = [max(each.stop - each.start for each in batch) for batch in batches]
        pairs = zip(costs, largest, strict=True)
        waiting = 4 if scenario.method.rules.remembers_updates else 0
        residual = waiting * scenario.costs.dense.parameters
        memory = [
            each.model_bytes + 2 * each.gradient_bytes + rows * each.activation_bytes + residual
            for each, rows in pairs
        ]
        found.append((schedule_cohort(scenario, members, load).total_s, memory, load.down_bytes + load.up_bytes))
    return dict(zip(("deadline", "memory", "data cap"), np.array(found).transpose(1, 0, 2), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["deadline", "memory", "data cap"])
@pytest.mark.parametrize("settings", OBEYS_BUDGETS, ids="-".join)
def test_law_8_a_budget_meets_its_limit_and_the_next_rung_does_not(settings: tuple[str, ...], limit: str) -> None:
    scenario = limited_scenario(settings, limit)
    population, rungs = scenario.workload.population, scenario.budget.ladder.keep_ratios
    allowed = {
        "deadline": np.full(len(population), scenario.budget.deadline_s),
        "memory": population.devices.column("memory_bytes"),
        "data cap": population.devices.column("data_cap_bytes"),
    }[limit]
    needs = needs_at_rungs(scenario)[limit]
    members = cohort_of(scenario, np.arange(len(population)), round=1)
    assert len(set(members.keep_ratios)) > 1, "the limits of this test should not treat all clients alike"
    for client, keep_ratio in enumerate(members.keep_ratios):
        rung = int(np.searchsorted(rungs, keep_ratio)) if keep_ratio else -1
        assert rung == -1 or rungs[rung] == keep_ratio
        assert rung == -1 or needs[rung, client] <= allowed[client]
        assert rung == len(rungs) - 1 or needs[rung + 1, client] > allowed[client]
        assert members.limited_by[client] == ("nothing" if keep_ratio == 1 else limit)


@pytest.mark.parametrize("num_clients", [3, 20])
@pytest.mark.parametrize("rule", PARTITIONS)
def test_law_9_every_row_is_placed_once_or_reported(rule: str, num_clients: int, tmp_path) -> None:
    labels = np.random.default_rng(0).integers(0, 7, 1003)
    users = np.random.default_rng(1).integers(0, 25, 1003)
    (tmp_path / "rows.json").write_text(
        json.dumps(np.arange(1000).reshape(num_clients, -1).tolist() if num_clients == 20 else [[1, 5], [2], [1002]])
    )
    options = PartitionOptions(path=str(tmp_path / "rows.json") if rule == "file" else None)
    rows = partition(labels, num_clients, rule, options, 5, users)
    devices = listed([DeviceProfile("any", 1e9, 1e6, 1e6)] * num_clients)
    clients = population.build(devices, rows, 0.2, seed=5)
    owned = [np.concatenate([clients.train[client], clients.heldout[client]]) for client in range(num_clients)]
    assert all(len(np.unique(each)) == len(each) > 0 for each in owned)
    placed, leftover = np.concatenate(owned), population.leftover_rows(clients, 1003)
    if rule == "resample":
        assert leftover is None
        return
    assert len(np.unique(placed)) == len(placed)
    assert len(placed) + leftover == 1003
    left = {("natural", 20), ("natural", 3), ("file", 20), ("file", 3), ("classes", 3)}
    assert (leftover > 0) == ((rule, num_clients) in left)


@pytest.mark.parametrize(
    ("rule", "alpha"), [(rule, 1e6) for rule in PARTITIONS if "alpha" in PARTITIONS[rule].reads] + [("iid", None)]
)
def test_law_9_large_alpha_tends_to_iid(rule: str, alpha: float | None) -> None:
    labels = np.repeat(np.arange(10), 1000)

    def deviation(alpha: float | None) -> np.ndarray:
        rows = partition(labels, 10, rule, PartitionOptions(alpha=alpha), seed=0)
        counts = [np.bincount(labels[rows[client]], minlength=10) for client in range(10)]
        return np.abs(np.array(counts) / 100 - 1)  # from 100 rows of each class for each client

    assert deviation(alpha).max() < (0.05 if rule == "dirichlet" else 0.7)
    assert deviation(alpha).mean() < (0.02 if rule == "dirichlet" else 0.15)
    assert alpha is None or deviation(0.5).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_law_10_same_seed_same_bits(name: str) -> None:
    first = digest_of(name)
    torch.rand(3), np.random.default_rng().random()
    assert fresh_digest_of(name) == first
    assert digest_of(name, "seed=1") != first


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "sync"])
def test_law_10_holds_in_every_clock_mode(mode: str) -> None:
    scenario = clocked("ca-hfp", mode, *FRAIL)
    first, second = clocked_rounds(scenario), clocked_rounds(clocked.__wrapped__("ca-hfp", mode, *FRAIL))
    for ours, theirs in zip(first[1], second[1], strict=True):
        assert_same_report(ours, theirs)
    assert tensors.digest(first[0].params) == tensors.digest(second[0].params)
    assert digest_in(mode, "ca-hfp", "seed=1") != tensors.digest(first[0].params)


DEVICES = {
    "plain": (),
    "frail": FRAIL,
    "at times": tuple(
        f"population.tiers.{tier}.{setting}"
        for tier in range(4)
        for setting in ("availability=0.6", "availability_swing=0.3", "train_watts=2.0", "flops_per_s=3e3")
    ),
}
"""Settings of devices that are always there, break down, or are online at times, for work of minutes to hours."""
NARROW_TIERS = tuple(f"population.tiers.{tier}.keep_ratio=0.1" for tier in range(4))
MIXES = {"tiers": (), "dense": DENSE_TIERS, "narrow": NARROW_TIERS}


WORLDS = [
    *((devices, "uniform") for devices in DEVICES),
    *(("at times", "available"), ("frail", "round-robin"), ("frail", "by-examples")),
]
"""Devices with selection rules."""


def forecast_of(method: str, mode: str, *overrides: str) -> dict:
    more = ("rounds=8", "population.clients=9", "selection.clients_per_round=4")
    return forecast(clocked(method, mode, *more, *overrides))


def spent_by(predicted: dict) -> DenseTotals:
    names = ("down_bytes", "up_bytes", "train_flops", "simulated_s", "energy_j")
    return DenseTotals(*(predicted[name] for name in names), predicted["fates"].get("counted", 0))


@pytest.mark.parametrize(("devices", "rule"), WORLDS)
@pytest.mark.parametrize("mode", MODES)
def test_against_fedavg_is_against_a_run_of_fedavg(mode: str, devices: str, rule: str, monkeypatch) -> None:
    """The clock of dense clients is that of a run of FedAvg to the digit, which is 100 % of itself."""
    given = (*DEVICES[devices], f"selection.rule={rule}")
    if devices == "at times" and mode in ("deadline", "partial"):
        given += ("clock.deadline_s=200",)
    dense = forecast_of("fedavg", mode, *given)
    percents = {dense[f"{name}_percent_of_fedavg"] for name in ("bytes", "flops", "simulated", "energy")}
    assert percents - {None} == {100.0}
    assert DenseTotals(**dense["fedavg"]) == spent_by(dense)
    for tiers in MIXES.values():
        cut = forecast_of("magnitude", mode, *given, *tiers)
        assert DenseTotals(**cut["fedavg"]) == spent_by(dense)
    assert spent_by(cut) != spent_by(dense)
    monkeypatch.setattr(fedavg, "spends_as_much", lambda method: False)  # then its clock runs beside its own, too
    assert forecast_of("fedavg", mode, *given) == dense


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_compared_with_what_a_run_of_fedavg_spends(mode: str) -> None:
    (state, reports), (dense, _) = (clocked_rounds(clocked(name, mode, *FRAIL)) for name in ("random", "fedavg"))
    assert state.totals.fedavg == dense.totals.fedavg == fedavg.totals_of(dense.totals)
    assert [report.totals.fedavg.simulated_s for report in reports] == sorted(
        {report.totals.fedavg.simulated_s for report in reports}
    )


@pytest.mark.slow
def test_law_10_layers_that_draw_are_seeded_and_the_generator_is_put_back() -> None:
    scenario = build_scenario(tiny_settings())
    with_dropout = nn.Sequential(*list(scenario.workload.model)[:-1], nn.Dropout(0.5), scenario.workload.model[-1])
    plan = ChannelPlan.trace(with_dropout, torch.randn(2, 1, 8, 8))
    workload = replace(scenario.workload, model=with_dropout, plan=plan)
    scenario = replace(scenario, workload=workload)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tensors.digest(played(scenario).params)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert tensors.digest(played(scenario).params) == first


RESUMED = [
    *((name, mode) for mode in MODES for name in ("ca-hfp", "autoflip", "fedmp")
      if (name, mode) != ("autoflip", "sync")),
    *((name, "partial") for name in ("dapperfl", "scaffold", "prunefl", "feddst", "fedtiny", "fedmef", "fedrts")),
    ("nefl", "partial", *RESIDUAL),
    ("ca-hfp+", "async"),
    ("fjord", "async"),
    ("scaffold", "sync", *COMPRESSED["top-k"]),
    ("ca-hfp", "async", *COMPRESSED["top-k"]),
    ("ca-hfp", "async", *COMPRESSED["8-bit"]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("settings", RESUMED, ids="-".join)
def test_law_11_stop_anywhere_and_resume(settings: tuple[str, ...], tmp_path: Path) -> None:
    """From the checkpoint of any round on: parameters, clock, batteries, work in flight and tables are the same."""
    name, mode, *more = settings
    scenario = clocked(name, mode, *FRAIL, "server.optimizer=momentum", *more)
    executor = InProcessExecutor(scenario.workload)
    whole = list(run_rounds(scenario, initial_state(scenario), executor, Storage(tmp_path / "whole", 1, 9)))
    assert len(whole) == 4
    assert mode != "async" or any(state.in_flight for state, _ in whole)
    for round in (1, 2, 3):
        folder = tmp_path / f"stopped after {round}"
        shutil.copytree(tmp_path / "whole" / "checkpoints", folder / "checkpoints")
        loaded = checkpoint.load(checkpoint.path_of(folder / "checkpoints", round))
        rest = list(run_rounds(scenario, loaded, executor, Storage(folder, 1, 9)))
        for (ours, report), (theirs, same) in zip(rest, whole[round:], strict=True):
            assert_same_report(report, same)
            assert states_digest(ours) == states_digest(theirs)
            for part in records.TABLES:
                file = f"{part}/round_{report.round:06d}.parquet"
                assert computed(folder / file).equals(computed(tmp_path / "whole" / file))


def computed(part: Path) -> pa.Table:
    table = pq.read_table(part)
    return table.drop_columns([name for name in records.MEASURED if name in table.column_names])


def states_digest(state: ServerState) -> dict[str, object]:
    """All that is remembered between rounds, as hashes."""
    clock = {f"history/{name}": torch.from_numpy(column) for name, column in state.history.items()}
    return {
        "params": tensors.digest(state.params),
        "memory": tensors.digest(state.memory),
        "clock": tensors.digest(clock),
        "work": tensors.digest(serialization.tensors_of(state.in_flight)),
        "reasons": serialization.reasons_of(state.in_flight),
        "versions": {round: tensors.digest(params) for round, params in state.versions.items()},
        "clients": {client: tensors.digest(state.clients[client]) for client in state.clients},
        "totals": state.totals,
        "fedavg": None if state.fedavg is None else states_digest(state.fedavg),
    }


def test_every_compression_is_in_the_table_of_this_test() -> None:
    assert set(COMPRESSED) == set(COMPRESSIONS)
    named = {law for build in COMPRESSIONS.values() for law in build().keeps}
    assert named | {compression.EQUALS_FEDAVG} == {*LAWS_OF_COMPRESSION, compression.RAY}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSED)
def test_keep_ratio_1_is_fedavg_of_the_same_compression(name: str) -> None:
    assert digest_of("magnitude", *DENSE_TIERS, *COMPRESSED[name]) == digest_of("fedavg", *COMPRESSED[name])


def is_fedavg_at_keep_1(name: str, folder: Path) -> bool:
    return digest_of("magnitude", *DENSE_TIERS, *COMPRESSED[name]) == digest_of("fedavg")


def is_same_again(name: str, folder: Path) -> bool:
    """The same seed gives the same bits, another seed others."""
    first = digest_of("ca-hfp", *COMPRESSED[name])
    torch.rand(3), np.random.default_rng().random()
    again = fresh_digest_of("ca-hfp", *COMPRESSED[name])
    return again == first != digest_of("ca-hfp", "seed=1", *COMPRESSED[name])


def is_the_same_in_any_order(name: str, folder: Path) -> bool:
    """Rounds whose clients are trained backwards, one by one, are the same, what they remember included."""
    scenario = clocked("heterofl", "async", *FRAIL, *COMPRESSED[name])
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    other, backwards = state, Backwards(scenario.workload)
    for _ in range(3):
        state, _ = run_round(scenario, state, executor)
        other, _ = run_round(scenario, other, backwards)
    return states_digest(state) == states_digest(other)


def is_the_same_when_resumed(name: str, folder: Path) -> bool:
    scenario = clocked("heterofl", "partial", *FRAIL, *COMPRESSED[name])
    executor, storage = InProcessExecutor(scenario.workload), Storage(folder, 1, 9)
    whole = [state for state, _ in run_rounds(scenario, initial_state(scenario), executor, storage)]
    loaded = checkpoint.load(checkpoint.path_of(folder / "checkpoints", 2))
    rest = [state for state, _ in run_rounds(scenario, loaded, executor, Storage(folder / "rest", 1, 9))]
    return [states_digest(state) for state in rest] == [states_digest(state) for state in whole[2:]]


def leaves_what_nobody_covers(name: str, folder: Path) -> bool:
    scenario = clocked("heterofl", "deadline", *FRAIL, *NARROW, *COMPRESSED[name])
    before, plan = initial_state(scenario).params, scenario.workload.plan
    after, _ = clocked_rounds(scenario)
    held = held_entries(plan, masks.keep_top(plan, first_channels(plan), 0.5), before)
    assert any(not torch.equal(after.params[key], value) for key, value in before.items())
    return all(torch.equal(after.params[key][~held[key]], value[~held[key]]) for key, value in before.items())


LAWS_OF_COMPRESSION = {
    compression.EQUALS_FEDAVG: is_fedavg_at_keep_1,
    compression.UNCOVERED: leaves_what_nobody_covers,
    compression.ORDER: is_the_same_in_any_order,
    compression.SEED: is_same_again,
    compression.RESUME: is_the_same_when_resumed,
}
"""Each law that a compression may name, and what it comes to; `RAY` is law 12's test."""


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS_OF_COMPRESSION)
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compression_keeps_the_laws_that_it_names_and_no_others(name: str, law: str, tmp_path: Path) -> None:
    assert LAWS_OF_COMPRESSION[law](name, tmp_path) == (law in COMPRESSIONS[name]().keeps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ca-hfp", "heterofl"])
def test_a_deadline_nobody_is_late_for_and_over_selection_by_nobody_are_synchronous(name: str) -> None:
    synchronous = clocked(name, "sync", *FRAIL)
    same = {
        "deadline": ClockRules(DEADLINE, deadline_s=1e6),
        "partial": ClockRules(DEADLINE, deadline_s=1e6, accept_partial=True),
        "over-selection": ClockRules(OVER_SELECTION, over_selection=1.0),
    }
    expected, reports = clocked_rounds(synchronous, 3)
    counted = [(report.clients["fate"] == outcomes.COUNTED).any() for report in reports]
    assert all(counted), "an empty round lasts as long as set"
    for mode, rules in same.items():
        state, others = clocked_rounds(replace(synchronous, clock=rules), 3)
        assert states_digest(state) == states_digest(expected), mode
        for ours, theirs in zip(others, reports, strict=True):
            assert_same_report(ours, theirs)


def test_asynchronous_clients_of_equal_speed_are_a_synchronous_round() -> None:
    """As many at work as the buffer holds, all done in the same moment: the first buffer is a cohort."""
    rules = ClockRules(ASYNC, buffer_size=3, concurrency=3)
    speed = {"compute_variation": 0, "link_variation": 0, "flops_per_s": 1e30, "latency_s": 1.0,
             "down_bytes_per_s": 1e30, "up_bytes_per_s": 1e30}  # fmt: skip
    scenario = with_figures(clocked("magnitude", "sync"), **speed)
    plan = planning.plan_round(replace(scenario, clock=rules), initial_state(scenario))
    cohort = plan.ended[0].cohort.clients
    ours, _ = run_round(replace(scenario, clock=rules), initial_state(scenario), InProcessExecutor(scenario.workload))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "select_clients", lambda *_: cohort)
        theirs, _ = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    assert tensors.digest(ours.params) == tensors.digest(theirs.params)
    assert ours.totals.simulated_s == theirs.totals.simulated_s == 2.0


@pytest.fixture(scope="module")
def law_12_runs(tmp_path_factory) -> dict[str, tuple[Scenario, str, list[RoundReport]]]:
    """Scenarios of each kind of local rule, with digest and reports of their in-process run."""
    kinds = {
        "ca-hfp fisher": ("ca-hfp", "method.warmup_rounds=1"),
        "ca-hfp variation": ("ca-hfp", "method.estimator=variation", "method.warmup_rounds=1"),
        "heterofl batch norm": ("heterofl", "model.name=resnet32", "model.options={}", "rounds=1"),
        "magnitude adam": ("magnitude", "training.optimizer=adam", "training.learning_rate=0.003"),
        "ca-hfp+ hutchinson": ("ca-hfp+", "method.estimator=hutchinson", "method.warmup_rounds=1"),
        "packs of two": ("fedavg", "model.name=mlp", "model.options={hidden: []}", "training.pack=2"),
        "ca-hfp secant": ("ca-hfp", "method.estimator=secant", "method.warmup_rounds=1"),
        **{
            name: (name,)
            for name in ("fjord", "fedmp", "dapperfl", "scaffold", "prunefl", "feddst", "fedtiny", "fedmef", "fedrts",
                         "autoflip", "fiarse")
        },
        "nefl": ("nefl", *RESIDUAL),
        **{f"ca-hfp {name}": ("ca-hfp", *settings) for name, settings in COMPRESSED.items()},
        "packs of two, top-k": (
            "fedavg", "model.name=mlp", "model.options={hidden: []}", "training.pack=2", *COMPRESSED["top-k"],
        ),
    }  # fmt: skip
    runs = {}
    for kind, overrides in kinds.items():
        scenario = build_scenario(settings_of(*overrides, "rounds=3", "selection.clients_per_round=5"))
        runner = in_process.InProcessRunner()
        reports = list(runner.run(scenario, Storage(tmp_path_factory.mktemp("in_process"), 1, 1)))
        runs[kind] = scenario, tensors.digest(runner.final_state().params), reports
    return runs


@pytest.mark.ray
@pytest.mark.slow
def test_law_12_ray_is_in_process(local_ray: None, tmp_path, law_12_runs) -> None:
    from raysim.executors.ray.runner import RayRunner

    with RayRunner(3, None) as runner:
        for kind, (scenario, expected, same) in law_12_runs.items():
            reports = list(runner.run(scenario, Storage(tmp_path / kind, 1, 1)))
            assert tensors.digest(runner.final_state().params) == expected, kind
            for ours, theirs in zip(reports, same, strict=True):
                assert (ours.score, ours.submodel, ours.totals) == (theirs.score, theirs.submodel, theirs.totals)
                for column, values in ours.clients.items():
                    np.testing.assert_array_equal(values, theirs.clients[column])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("num_actors", [1, pytest.param(3, marks=pytest.mark.long)])
def test_law_12_holds_in_every_clock_mode(num_actors: int, local_ray: None, tmp_path: Path) -> None:
    from raysim.executors.ray.runner import RayRunner

    with RayRunner(num_actors, None) as runner:
        for mode in MODES:
            for name in ("ca-hfp", "autoflip"):
                scenario = clocked(name, mode, *FRAIL)
                expected, reports = clocked_rounds(scenario)
                found = list(runner.run(scenario, Storage(tmp_path / f"{name} {mode}", 1, 1)))
                assert tensors.digest(runner.final_state().params) == tensors.digest(expected.params), (name, mode)
                for ours, theirs in zip(found, reports, strict=True):
                    assert_same_report(ours, theirs)


@pytest.mark.ray
@pytest.mark.slow
def test_law_12_a_killed_actor_changes_nothing(local_ray: None, tmp_path, law_12_runs) -> None:
    import ray

    from raysim.executors.ray.runner import RayRunner

    scenario, expected, _ = law_12_runs["ca-hfp fisher"]
    with RayRunner(2, None) as runner:
        runner.make_ready(scenario)
        os.kill(ray.get(runner.client_actors[0].process_id.remote()), signal.SIGKILL)
        first, *_ = runner.run(scenario, Storage(tmp_path, 1, 1))
        assert tensors.digest(runner.final_state().params) == expected
    assert len(first.incidents) == 1
    assert first.incidents[0].startswith("a client actor was lost (its process ended)")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 8), (1, 5), pytest.param((3, 3), marks=pytest.mark.long)], ids=str)
def test_running_variances_stay_positive_whatever_version_clients_start_from(size: tuple[int, int]) -> None:
    settings = tiny_settings(
        "method.name=fedavg",
        "model={name: resnet32, options: {}}",
        "rounds=6",
        "training.epochs=3",
        "training.batch_size=4",
        "population.clients=12",
        "data.max_train_examples=240",
        "clock.mode=async",
        "data.transform={grey_to_rgb: true}",
        f"clock.buffer_size={size[0]}",
        f"clock.concurrency={size[1]}",
        "evaluation.max_examples=40",
    )
    scenario = build_scenario(settings)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for _ in range(6):
        state, report = run_round(scenario, state, executor)
        lowest = min(float(value.min()) for key, value in state.params.items() if key.endswith("running_var"))
        assert lowest > 0
        assert report.score is not None
        assert np.isfinite(report.score.loss)
