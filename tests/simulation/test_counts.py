"""Tensors of whole numbers and booleans, such as BatchNorm's number of batches: the largest of the clients counts."""

import numpy as np
import pytest
import torch
from torch import nn

from raysim.client.assignments import Assignments
from raysim.client.trainer import ClientTrainer
from raysim.executors.in_process import InProcessExecutor
from raysim.server.fill import FILLS, apply_updates
from raysim.server.fixed_point import ExactSum
from raysim.server.updates import ClientUpdates, merge
from raysim.simulation.assignments import version_of
from raysim.simulation.build import build_scenario
from raysim.simulation.planning import plan_round
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests import planned
from tests.clocked import FRAIL, MODES, clocked
from tests.conftest import tiny_settings

COUNT = "1.num_batches_tracked"
NORMED = "model={name: 'tests.simulation.test_counts:normed'}"


def normed(**_: object) -> nn.Module:
    head = (nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), *head)


@pytest.mark.parametrize("method", ["fedavg", "ca-hfp"])
@pytest.mark.parametrize("mode", MODES)
def test_the_server_takes_the_largest_count_of_the_clients_whose_work_counts(mode: str, method: str) -> None:
    scenario = clocked(method, mode, *FRAIL, NORMED)
    state, executor, moved = initial_state(scenario), InProcessExecutor(scenario.workload), 0
    for _ in range(4):
        counted = plan_round(scenario, state).counted
        started = [int(version_of(state, work.cohort.round)[COUNT]) for work in counted]
        expected = [
            before + int(epochs) * -(-int(rows) // scenario.workload.local.batch_size)
            for work, before in zip(counted, started, strict=True)
            for rows, epochs in zip(work.cohort.examples, work.cohort.epochs, strict=True)
        ]
        expected = expected or [int(state.params[COUNT])]
        state, _ = run_round(scenario, state, executor)
        assert int(state.params[COUNT]) == max(expected)
        moved += max(expected) > 0
    assert moved


def test_counts_of_long_rounds_stay_counts() -> None:
    """2,500 steps by 86 clients of 5,000 rows; their product with the rows is no sum of the server."""
    params = {"count": torch.tensor(1_000_000), "seen": torch.tensor(False), "weight": torch.zeros(2)}
    updates, rows = [], 5000
    for client in range(86):
        sums = ExactSum.zeros_like({"weight": params["weight"]})
        sums.add({"weight": torch.tensor([1.0, float(client)])}, {}, rows)
        largest = {"count": torch.tensor(1_002_500 - client % 7), "seen": torch.tensor(client == 3)}
        columns = {"client": np.array([client])}
        kept, none = np.ones((1, 1), dtype=np.bool_), np.empty((1, 0, 1))
        updates.append(ClientUpdates({"update": sums}, columns, kept, none, largest=largest))
    merged = merge([updates[k] for k in np.random.default_rng(0).permutation(86)])
    coverage = dict.fromkeys(params, torch.tensor(86.0 * rows, dtype=torch.float64))
    value = merged.sums["update"].value
    after = apply_updates(
        params, frozenset(["count", "seen"]), value, coverage, 86 * rows, FILLS["global"], 1.0, True, merged.largest
    )
    assert after["count"].item() == 1_002_500
    assert after["seen"].item() is True
    assert after["weight"].tolist() == [1.0, 42.5]
    counts = ExactSum.zeros_like({"steps": torch.zeros(())})
    for _ in range(86):
        counts.add({"steps": torch.tensor(2500.0)}, {}, rows)
    assert counts.value("steps").item() == 2500 * 5000 * 86


class Marked(nn.Module):
    """A module with whole numbers per channel, a mark and a constant mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 6)
        self.register_buffer("uses", torch.zeros(6, dtype=torch.int32))
        self.register_buffer("is_ready", torch.tensor(False))
        self.register_buffer("open", torch.tensor([True, False, True, True, True, True]))
        self.last = nn.Linear(6, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.uses += len(inputs)
            self.is_ready |= True
        return self.last(self.layer(inputs.flatten(1)).relu() * self.open)


def marked(**_: object) -> nn.Module:
    return Marked()


def test_buffers_of_the_users_own_take_the_largest_value_with_their_type() -> None:
    scenario = build_scenario(tiny_settings("model={name: 'tests.simulation.test_counts:marked'}"))
    state, report = run_round(scenario, initial_state(scenario), InProcessExecutor(scenario.workload))
    rows = scenario.workload.population.train.counts_of(report.clients["client"])
    assert state.params["uses"].tolist() == [int(rows.max())] * 6
    assert state.params["uses"].dtype == torch.int32
    assert state.params["is_ready"].item() is True
    assert state.params["open"].tolist() == [True, False, True, True, True, True]


def test_counts_are_not_among_the_sums_and_travel_as_the_largest_of_a_chunk() -> None:
    scenario = build_scenario(tiny_settings(NORMED))
    plan = planned.plan_round(scenario)
    trained = ClientTrainer(scenario.workload).train(plan.assignments, plan.broadcast)
    assert COUNT not in trained.sums["update"].tensors
    steps = [-(-int(rows) // scenario.workload.local.batch_size) for rows in plan.cohort.examples]
    assert len(set(steps)) > 1
    assert trained.largest[COUNT].item() == max(steps)
    alone = ClientTrainer(scenario.workload).train(Assignments.of_rows([plan.assignments[0]]), plan.broadcast)
    assert alone.largest[COUNT].item() == steps[0]


def test_updates_of_any_finite_magnitude_are_summed_in_the_driver() -> None:
    """Chunks whose sums together are beyond 64 bits of one unit."""
    updates = []
    for chunk in range(4):
        sums = ExactSum.zeros_like({"weight": torch.zeros(2)})
        sums.add({"weight": torch.tensor([9e8, -3e38])}, {}, 5000)
        kept, none = np.ones((1, 1), dtype=np.bool_), np.empty((1, 0, 1))
        updates.append(ClientUpdates({"update": sums}, {"client": np.array([chunk])}, kept, none))
    found = merge(updates).sums["update"].value("weight")
    torch.testing.assert_close(found, torch.tensor([1.8e13, -6e42], dtype=torch.float64), rtol=1e-6, atol=0)
