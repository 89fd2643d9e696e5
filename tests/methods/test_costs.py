"""Bytes and FLOPs of every kind of method, counted by hand (specification, section 4)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.assignments import Assignments
from raysim.client.trainer import ClientTrainer
from raysim.core import seeding
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.prunefl import round_seconds
from raysim.models import cost
from raysim.pruning import elements
from raysim.pruning.masks import CohortMasks, Mask
from raysim.simulation import planning, preparation
from raysim.simulation.accounting import theoretical_flops
from raysim.simulation.preparation import prepare
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.transition import initial_state
from tests.methods.slow_rounds import count, member, members, num_steps, sizes, small_scenario
from tests.planned import plan_round, state_after

FIRST, SECOND, HIDDEN, CLASSES = 3, 4, 5, 10
PARAMETERS = (9 * 3 + 3) + (9 * 3 * 4 + 4) + (16 * 4 * 5 + 5) + (5 * 10 + 10)
WEIGHTS = 9 * 3 + 9 * 3 * 4 + 16 * 4 * 5 + 5 * 10


def parameters(first: int, second: int, hidden: int) -> int:
    weights = 9 * first + 9 * first * second + 16 * second * hidden + hidden * CLASSES
    return weights + first + second + hidden + CLASSES


def flops(first: int, second: int, hidden: int) -> int:
    """Per row and step: 2 per multiply-accumulate, 64 positions; no gradient of the images."""
    convolutions = 2 * 64 * 9 * first * 2 + 2 * 64 * 9 * first * second * 3
    return convolutions + 2 * 16 * second * hidden * 3 + 2 * hidden * CLASSES * 3


def widths(keep: float) -> tuple[int, int, int]:
    return count(FIRST, keep), count(SECOND, keep), count(HIDDEN, keep)


CHANNEL_BITS = math.ceil((FIRST + SECOND + HIDDEN) / 8)
"""Bytes that tell which channels a submodel keeps."""


def played(scenario: Scenario, rounds: int = 1):
    state, executor, reports = initial_state(scenario), InProcessExecutor(scenario.workload), []
    for _ in range(rounds):
        state, report = run_round(scenario, state, executor)
        reports.append(report)
    return state, reports


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magnitude", "scaffold", "ca-hfp", "fisher"])
def test_submodels_travel_both_ways_and_scaffold_twice(name: str) -> None:
    scenario = small_scenario(name)
    _, (report,) = played(scenario)
    for place, client in enumerate(members(scenario, 1)):
        width = widths(client.keep)
        model, bits = 4 * parameters(*width), CHANNEL_BITS if client.keep < 1 else 0
        times = 2 if name == "scaffold" else 1
        scores = {"ca-hfp": 2 * 4 * sum(width), "fisher": 4 * sum(width)}.get(name, 0)
        assert report.clients["down_bytes"][place] == times * model + bits
        assert report.clients["up_bytes"][place] == times * model + scores
        assert report.clients["train_flops"][place] == client.n * 2 * flops(*width)


def test_hutchinson_pays_for_its_products() -> None:
    scenario = small_scenario("ca-hfp", "method.estimator=hutchinson", "method.hutchinson_draws=3")
    _, (report,) = played(scenario)
    for place, client in enumerate(members(scenario, 1)):
        assert report.clients["train_flops"][place] == client.n * flops(*widths(client.keep)) * (2 + 1 + 2 * 3)


@pytest.mark.parametrize("distill", [False, True])
def test_fjord_pays_each_step_at_its_width(distill: bool) -> None:
    scenario = small_scenario("fjord", f"method.options={{distill: {str(distill).lower()}}}", "training.epochs=3")
    _, (report,) = played(scenario)
    size = scenario.workload.local.batch_size
    for place, client in enumerate(members(scenario, 1)):
        allowed = [width for width in (0.2, 0.4, 0.6, 0.8, 1.0) if width <= client.keep]
        generator = seeding.generator(scenario.workload.seed, "widths", 1, client.id)
        drawn = generator.choice(allowed, num_steps(scenario, client.n)).tolist()
        widest = max(allowed) if distill else max(drawn)
        rows = [size] * (client.n // size) + ([client.n % size] if client.n % size > 1 else [])
        rows[-1] += client.n % size == 1
        expected = 0
        for step, width in enumerate(drawn):
            expected += rows[step % len(rows)] * flops(*widths(width))
            if distill and widths(width) != widths(widest):
                expected += rows[step % len(rows)] * flops(*widths(widest))
        assert report.clients["train_flops"][place] == expected
        model = 4 * parameters(*widths(widest))
        assert report.clients["up_bytes"][place] == model
        assert report.clients["down_bytes"][place] == model + (CHANNEL_BITS if widest < 1 else 0)


def test_dapperfl_downloads_everything_and_sends_its_submodel() -> None:
    scenario = small_scenario("dapperfl", "training.epochs=3")
    _, (report,) = played(scenario)
    for place, client in enumerate(members(scenario, 1)):
        width = widths(client.keep)
        assert report.clients["down_bytes"][place] == 4 * PARAMETERS
        assert report.clients["up_bytes"][place] == 4 * parameters(*width) + (CHANNEL_BITS if client.keep < 1 else 0)
        assert report.clients["train_flops"][place] == client.n * (flops(3, 4, 5) + 2 * flops(*width))


def test_fedprox_pays_for_the_epochs_that_were_trained() -> None:
    scenario = small_scenario("fedprox", "training.epochs=4", "method.options={straggler_share: 1.0}")
    state, (report,) = played(scenario)
    trained = report.clients["epochs"]
    assert len(set(trained.tolist())) > 1
    assert report.clients["train_flops"].tolist() == [
        client.n * int(epochs) * flops(3, 4, 5) for client, epochs in zip(members(scenario, 1), trained, strict=True)
    ]
    dense = 4 * flops(3, 4, 5) * sum(client.n for client in members(scenario, 1))
    assert state.totals.fedavg.train_flops == dense


@pytest.mark.parametrize(("name", "sparsity"), [("feddst", 0.5), ("feddst", 0.99), ("prunefl", None)])
def test_single_entries_travel_with_a_bitmap_or_an_index_list(name: str, sparsity: float | None) -> None:
    """Kept values, and the shorter of a bit per weight and 4 bytes per kept weight; masks go back when they move."""
    options = "reconfigure_rounds: 2, initial_rounds: 3"
    if sparsity is not None:
        options = f"sparsity: {sparsity}, readjust_rounds: 2"
    scenario = small_scenario(name, f"method.options={{{options}}}", "training.epochs=1")
    state = state_after(scenario, 1)
    planned, (_, reports) = plan_round(scenario, state), played(scenario, 2)
    mask = planned.masks[0]
    held = elements.unpack(mask.elements, scenario.workload.plan.shapes)
    kept = sum(int(bits.sum()) for bits in held.values())
    assert 0 < kept < WEIGHTS
    tells = min(math.ceil(WEIGHTS / 8), 4 * kept)
    assert (tells == 4 * kept) == (sparsity == 0.99)
    values = 4 * (PARAMETERS - WEIGHTS + kept)
    moves = np.array([num_steps(scenario, client.n) > 1 for client in members(scenario, 2)])
    sent_in_round_2 = tells * moves if name == "feddst" else 4 * PARAMETERS
    assert set(reports[0].clients["down_bytes"].tolist()) == {values + tells}
    new = ~np.isin(reports[1].clients["client"], reports[0].clients["client"])
    np.testing.assert_array_equal(reports[1].clients["down_bytes"], values + tells * new)
    assert (int(new.sum()), len(new)) == (1, 4), "the mask has not changed: who has it is not sent it again"
    np.testing.assert_array_equal(reports[1].clients["up_bytes"], values + sent_in_round_2)
    assert reports[1].clients["pruning_ratio"][0] == pytest.approx(1 - (PARAMETERS - WEIGHTS + kept) / PARAMETERS)
    per_weight = {"0.weight": 2 * 2 * 64, "2.weight": 2 * 3 * 64, "6.weight": 2 * 3, "8.weight": 2 * 3}
    needed = sum(int(bits.sum()) * per_weight[key] for key, bits in held.items())
    for place, client in enumerate(members(scenario, 2)):
        assert reports[1].clients["train_flops"][place] == client.n * flops(3, 4, 5), "hardware skips nothing"
        assert reports[1].clients["theoretical_train_flops"][place] == client.n * needed


@pytest.mark.parametrize("size", ["weights", "channels"])
def test_fiarse_sends_a_bitmap_with_the_weights_of_a_budget(size: str) -> None:
    scenario = small_scenario("fiarse", f"method.options={{size: {size}}}")
    _, (report,) = played(scenario)
    for place, client in enumerate(members(scenario, 1)):
        width = widths(client.keep)
        kept = math.ceil(client.keep * WEIGHTS) if size == "weights" else parameters(*width) - sum(width) - CLASSES
        values, tells = 4 * (PARAMETERS - WEIGHTS + kept), math.ceil(WEIGHTS / 8) if client.keep < 1 else 0
        assert report.clients["down_bytes"][place] == values + tells
        assert report.clients["up_bytes"][place] == values
        assert report.clients["train_flops"][place] == client.n * 2 * flops(3, 4, 5)
        assert (report.clients["theoretical_train_flops"][place] < client.n * 2 * flops(3, 4, 5)) == (client.keep < 1)


def test_feddst_sends_no_mask_where_it_did_not_move() -> None:
    scenario = small_scenario("feddst", "method.options={readjust_rounds: 2}")
    _, (first, second) = played(scenario, 2)
    sent = math.ceil(WEIGHTS / 8)
    new = ~np.isin(second.clients["client"], first.clients["client"])
    assert set((first.clients["up_bytes"] - first.clients["down_bytes"]).tolist()) == {-sent}
    np.testing.assert_array_equal(second.clients["up_bytes"] - second.clients["down_bytes"], sent * ~new)
    third = played(scenario, 3)[1][2]
    assert set((third.clients["up_bytes"] - third.clients["down_bytes"]).tolist()) == {-sent}, "it has changed"


@pytest.mark.slow
def test_prunefl_uploads_squares_when_due_where_everybody_takes_part_and_always_elsewhere() -> None:
    options = "method.options={reconfigure_rounds: 2, initial_rounds: 1}"
    for clients, expected in ((5, [0, 4 * PARAMETERS]), (4, [4 * PARAMETERS, 4 * PARAMETERS])):
        scenario = small_scenario("prunefl", options, f"selection.clients_per_round={clients}")
        state, extra = initial_state(scenario), []
        executor = InProcessExecutor(scenario.workload)
        for _ in range(2):
            prepared = state if state.round else prepare(scenario, state, executor)
            values = scenario.costs.of(plan_round(scenario, prepared).masks[0]).model_bytes
            pruned = sum(scenario.costs.pruned_elements(plan_round(scenario, prepared).masks[0]).values())
            state, report = run_round(scenario, state, executor)
            extra.append(int(report.clients["up_bytes"][0]) - (values - 4 * pruned))
        assert extra == expected


def test_a_hybrid_mask_counts_what_is_left_of_the_submodel() -> None:
    scenario = small_scenario("magnitude")
    workload = scenario.workload
    units = np.ones(workload.plan.num_units, dtype=np.bool_)
    units[workload.plan.units["0"].start] = False
    bits = {
        key: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
        for key, shape in ((key, workload.plan.shapes[key]) for key in ("0.weight", "0.bias", "2.weight"))
    }
    mask = Mask(units, elements.pack(bits))
    pruned = scenario.costs.pruned_elements(mask)
    gone = {
        key: int((~held)[1:].sum()) if key != "2.weight" else int((~held)[:, 1:].sum()) for key, held in bits.items()
    }
    assert pruned == gone
    entries = 2 * 9 + 2 + 4 * 2 * 9
    from raysim.simulation.cohort import transfer_bytes

    values = 4 * (parameters(2, 4, 5) - sum(gone.values()))
    tells = min(math.ceil(entries / 8), 4 * (entries - sum(gone.values())))
    assert transfer_bytes(scenario, mask) == (values + CHANNEL_BITS + tells, values)
    (work,) = planning.plan_round(scenario, initial_state(scenario)).ended
    work = replace(work, masks=CohortMasks.of([mask] * len(work)))
    theoretical = theoretical_flops(scenario, work)
    saved = gone["0.weight"] * 2 * 2 * 64 + gone["2.weight"] * 2 * 3 * 64  # biases cost nothing
    rows = work.cohort.examples * work.cohort.epochs
    np.testing.assert_array_equal(theoretical, work.load.train_flops - rows * saved)


@pytest.mark.parametrize(
    ("compression", "sent"),
    [((), 4.0), (("compression.name=8-bit",), 1.0), (("compression={name: top-k, share: 0.25}",), 4 * 0.25 + 1 / 8)],
    ids=["whole", "8-bit", "top-k"],
)
def test_prunefl_counts_the_seconds_of_updates_as_they_are_sent(compression: tuple[str, ...], sent: float) -> None:
    scenario = small_scenario("prunefl", *compression)
    view = plan_round(scenario).view
    devices, local = view.devices, view.local
    constant, seconds = round_seconds(view)
    down_s, up_s, flop_s = (
        float((1 / devices.column(name)).mean()) for name in ("down_bytes_per_s", "up_bytes_per_s", "flops_per_s")
    )
    rows, weights = float(view.examples.mean()) * local.epochs, view.costs.weight_flops
    for key, per_row in weights.items():
        size = view.params[key].numel()
        expected = 4 * down_s + sent * up_s + rows * per_row * flop_s
        assert seconds[key] == pytest.approx(expected, abs=8 / size * up_s), "two values are rounded up"
    whole = constant + sum(seconds[key] * view.params[key].numel() for key in weights)
    steps = local.num_steps(round(float(view.examples.mean())))
    overhead = float((2 * devices.column("latency_s") + steps * devices.column("step_overhead_s")).mean())
    up_bytes = view.update_bytes(Mask(np.ones(view.plan.num_units, dtype=np.bool_)))
    computed = rows * flop_s * sum(per_row * view.params[key].numel() for key, per_row in weights.items())
    assert whole == pytest.approx(overhead + view.costs.dense.model_bytes * down_s + up_bytes * up_s + computed)


def test_initial_pruning_is_paid_for_where_it_happens() -> None:
    scenario = small_scenario("prunefl", "method.options={initial_rounds: 3}")
    state = prepare(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    chosen = int(seeding.generator(scenario.workload.seed, "initial pruning").choice(5, 1)[0])
    totals, n = state.totals, member(scenario, chosen).n
    assert totals.preparation_flops == totals.train_flops == 3 * n * flops(3, 4, 5)
    dense_with_mask = 4 * PARAMETERS + math.ceil(WEIGHTS / 8)
    assert totals.preparation_bytes == totals.down_bytes + totals.up_bytes == dense_with_mask + 4 * PARAMETERS
    assert totals.simulated_s == totals.preparation_s > 0
    assert totals.fedavg is None, "dense clients would not prepare"


def test_percentages_of_fedavg_include_preparation() -> None:
    scenario = small_scenario("autoflip", "method.options={exploration_epochs: 3, mode: unstructured}")
    state, (report,) = played(scenario)
    totals, ns = state.totals, [member(scenario, id).n for id in range(5)]
    in_round = int(report.clients["train_flops"].sum())
    assert totals.train_flops == in_round + 3 * sum(ns) * flops(3, 4, 5)
    dense = 2 * sum(client.n for client in members(scenario, 1)) * flops(3, 4, 5)
    assert totals.percent_of_fedavg["flops"] == pytest.approx(100 * totals.train_flops / dense)
    moved = int(report.clients["down_bytes"].sum() + report.clients["up_bytes"].sum()) + 5 * 2 * 4 * PARAMETERS
    assert totals.percent_of_fedavg["bytes"] == pytest.approx(100 * moved / (4 * 2 * 4 * PARAMETERS))
    assert totals.simulated_s == pytest.approx(totals.preparation_s + report.round_s)
    assert totals.fedavg.simulated_s < totals.simulated_s


def test_an_objective_costs_nothing_before_it_is_used() -> None:
    given = ("method.options={exploration_epochs: 1}",)
    plain, scaffold = (
        preparation.prepare(scenario, initial_state(scenario), InProcessExecutor(scenario.workload)).totals
        for scenario in (small_scenario("autoflip", *given, *more) for more in ((), ("method.objective=scaffold",)))
    )
    assert plain == scaffold


def test_clipping_and_momentum_see_kept_entries_only() -> None:
    """A mask of single entries that covers whole channels trains what the cut submodel trains, bit for nearly bit."""
    scenario = small_scenario("magnitude", "training.clip_norm=0.5")
    planned, plan = plan_round(scenario), scenario.workload.plan
    place = int(np.argmin(planned.cohort.keep_ratios))
    assignment, params = planned.assignments[place], planned.broadcast.params
    from dataclasses import replace

    from tests.oracles import held_entries

    held = held_entries(plan, assignment.mask, params)
    dense = Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack(held))
    assert sum(sizes(plan).values()) > assignment.mask.kept.sum()
    cut = ClientTrainer(scenario.workload).train(Assignments.of_rows([assignment]), planned.broadcast).sums["update"]
    masked = (
        ClientTrainer(scenario.workload)
        .train(Assignments.of_rows([replace(assignment, mask=dense)]), planned.broadcast)
        .sums["update"]
    )
    for key in params:
        torch.testing.assert_close(masked.value(key), cut.value(key), rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """Rows of an image through an LSTM, scaled by a bare matrix, into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.matrix = nn.Parameter(torch.eye(12))
        self.frozen = nn.Parameter(torch.ones(5, 5), requires_grad=False)
        self.norm = nn.LayerNorm(12)
        self.last = nn.Linear(12, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.lstm(inputs.flatten(0, 1))[0][:, -1] @ self.matrix))


@pytest.mark.parametrize("name", ["feddst", "prunefl"])
def test_every_weight_with_two_dimensions_is_sparsified_whatever_holds_it(name: str) -> None:
    options = {"feddst": "sparsity: 0.5, readjust_rounds: 1", "prunefl": "reconfigure_rounds: 1, initial_rounds: 1"}
    model = "model={name: 'tests.methods.test_costs:Recurrent', options: {}}"
    scenario = small_scenario(name, model, f"method.options={{{options[name]}}}")
    assert set(scenario.costs.weight_flops) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "matrix", "last.weight"}
    state, report = played(scenario, 2)[0], played(scenario, 2)[1][-1]
    weights = [state.params[key] for key in scenario.costs.weight_flops]
    pruned = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    if name == "feddst":
        assert pruned == pytest.approx(0.5, abs=0.02)
        assert report.clients["pruning_ratio"].mean() > 0.4
    assert pruned > 0
    assert bool((state.params["frozen"] == 1).all())


def test_flops_of_weights_add_up_to_those_of_the_model() -> None:
    for build in (Recurrent, lambda: small_scenario("fedavg").workload.model):
        model, flops = build(), 0.0
        for key, each in cost.weight_flops(model, (1, 8, 8)).items():
            flops += each * dict(model.named_parameters())[key].numel()
        assert flops == pytest.approx(cost.count(model, (1, 8, 8)).train_flops)


def test_statistics_estimated_anew_cost_their_forward_pass() -> None:
    normed = "model={name: 'tests.oracles:norm_net', options: {channels: [3, 4]}}"
    scenario = small_scenario("heterofl", normed, "rounds=3", "evaluation.every=2", "evaluation.max_examples=null")
    rows, forward = sum(scenario.workload.population.train.counts), 2 * 64 * (9 * 3 + 27 * 4) + 2 * 64 * 10
    totals = played(scenario, 3)[0].totals
    assert totals.statistics_flops == 2 * rows * forward, "after rounds 2 and 3"
    spent, dense = totals.train_flops + 2 * rows * forward, totals.fedavg.train_flops
    assert totals.percent_of_fedavg["flops"] == pytest.approx(100 * spent / dense)
    assert totals.saved["flops"] == dense - spent
    plain = played(small_scenario("magnitude", normed))[0].totals
    assert plain.statistics_flops == 0
