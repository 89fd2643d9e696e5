"""Clients that trained each channel, counted slowly and obviously, and the record of it in a round."""

import numpy as np
import pytest
import torch

from raysim.clock.outcomes import COUNTED
from raysim.executors.in_process import InProcessExecutor
from raysim.pruning import elements
from raysim.pruning.coverage import channel_columns
from raysim.pruning.masks import Mask
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.state import Storage
from raysim.simulation.transition import initial_state
from tests.clocked import QUICK, clocked, played
from tests.conftest import settings_of


@pytest.mark.parametrize("distinct", [1, 3, 40])
def test_clients_and_examples_are_counted_per_unit(tiny_scenario, distinct):
    plan, rng = tiny_scenario.workload.plan, np.random.default_rng(distinct)
    several = [Mask(rng.random(plan.num_units) < 0.5) for _ in range(distinct)]
    masks = [several[place] for place in rng.integers(0, distinct, 60)]
    examples = rng.integers(1, 2**40, 60)
    table = channel_columns(plan, 7, masks, examples)
    assert set(table["round"].tolist()) == {7}
    assert table["unit"].tolist() == list(range(plan.num_units))
    for unit in range(plan.num_units):
        holders = [place for place, mask in enumerate(masks) if mask.kept[unit]]
        assert table["clients"][unit] == len(holders)
        assert table["examples"][unit] == sum(examples[place] for place in holders)


def test_nobody_counts_as_zeros(tiny_scenario):
    table = channel_columns(tiny_scenario.workload.plan, 1)
    assert len(table["unit"]) == tiny_scenario.workload.plan.num_units > 0
    assert not table["clients"].any()
    assert not table["examples"].any()


def test_a_channel_none_of_whose_weights_is_sent_back_is_not_trained(tiny_scenario):
    """Where single weights are masked; its bias alone is no channel."""
    plan = tiny_scenario.workload.plan
    group = plan.groups[0]
    (key,) = [slot.key for slot in group.slots if slot.role == "weight" and len(plan.shapes[slot.key]) > 1]
    kept = torch.ones(plan.shapes[key], dtype=torch.bool)
    kept[1] = False
    kept[2].view(-1)[1:] = False
    mask = Mask(np.ones(plan.num_units, dtype=np.bool_), elements.pack({key: kept}))
    table = channel_columns(plan, 1, [mask, mask], np.array([3, 4]))
    units = plan.units[group.name]
    assert table["clients"][units][:4].tolist() == [2, 0, 2, 2]
    assert table["examples"][units][:4].tolist() == [7, 0, 7, 7]
    assert table["clients"][units.stop :].tolist() == [2] * (plan.num_units - group.size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "mode"),
    [("fedavg", "sync"), ("random", "deadline"), ("ca-hfp", "async"), ("dapperfl", "sync"), ("prunefl", "sync")],
)
def test_rounds_count_those_whose_work_counts(method, mode):
    """Of the full model all channels; of clients that cut their submodels themselves what they send back."""
    scenario = clocked(method, mode)
    _, reports = played(scenario, 2)
    for report in reports:
        counted = report.clients["fate"] == COUNTED
        most = (int(counted.sum()), int(report.clients["examples"][counted].sum()))
        table = report.channels
        assert (table["clients"] <= most[0]).all()
        assert (table["examples"] <= most[1]).all()
        if method == "fedavg":
            assert set(zip(table["clients"].tolist(), table["examples"].tolist(), strict=True)) == {most}
        if method == "dapperfl":
            assert table["clients"].min() < most[0]
        assert (table["clients"] == 0).mean() == pytest.approx(report.coverage.untrained_channel_share)


def test_a_round_that_nobody_ends_is_written_as_zeros_and_merged_with_the_others(tmp_path):
    drop_out = (f"population.tiers.{tier}.failure_rate=0.9999" for tier in range(4))
    settings = settings_of("random", *QUICK, "rounds=2", *drop_out)
    scenario = build_scenario(settings)
    storage = Storage(tmp_path, 1, 2)
    list(run_rounds(scenario, initial_state(scenario), InProcessExecutor(scenario.workload), storage))
    records.merge_all(tmp_path)
    table = records.read(tmp_path / "channels.parquet")
    assert table["round"].tolist() == [1] * scenario.workload.plan.num_units + [2] * scenario.workload.plan.num_units
    assert not table["clients"].any()
    assert {name: column.dtype for name, column in table.items()} == {
        "round": np.int32,
        "unit": np.int32,
        "clients": np.int32,
        "examples": np.int64,
    }


def test_records_of_a_run_that_began_before_channels_were_counted_are_merged(tmp_path):
    for table in ("rounds", "clients"):
        records.write_part({"round": np.array([1])}, tmp_path / table, 1)
    records.merge_all(tmp_path)
    assert not (tmp_path / "channels.parquet").exists()
    assert (tmp_path / "clients.parquet").exists()
