import json

import numpy as np
import pytest

from tests.cli.test_main import arguments
from tests.commands import left_with
from tests.stores import store_in


@pytest.mark.slow
def test_a_runs_summary_tells_costs_fates_targets_and_why_it_was_short(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    overrides = [
        "rounds=5", "stop.simulated_s=0.1", "evaluation.targets=[0.01, 1.0]", "costs.price_per_kwh=0.4",
        "costs.carbon_g_per_kwh=380", "costs.cluster_watts=150", "clock.mode=async", "clock.buffer_size=2",
        "data.max_train_examples=150", "evaluation.max_examples=50", f"tracking.uri={store_in(tmp_path, 'x.db')}",
        *(f"population.tiers.{tier}.{figure}" for tier in range(4)
          for figure in ("train_watts=4.0", "radio_j_per_byte=1e-6", "failure_rate=0.3")),
    ]  # fmt: skip
    assert left_with(*arguments(*overrides), "--output", str(folder)) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] < 5
    assert summary["simulated_s"] >= 0.1
    assert [entry["round"] for entry in summary["targets"]][1] is None
    assert sum(summary["fates"].values()) > 2 * summary["rounds"]
    assert summary["energy_j"] > 0
    assert summary["empty_rounds"] == 0
    costs = summary["costs"]
    assert costs["device_kwh"] == pytest.approx(summary["energy_j"] / 3.6e6)
    assert costs["device_price"] == pytest.approx(0.4 * costs["device_kwh"])
    assert costs["device_co2_g"] == pytest.approx(380 * costs["device_kwh"])
    assert costs["cluster_kwh"] == pytest.approx(150 * summary["wall_s"] / 3.6e6)
    shown = capsys.readouterr()
    told = shown.out + shown.err
    for words in ("energy of the devices", "work that did not count", "not reached"):
        assert words in told
    import pyarrow.parquet as pq

    clients, rounds = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("clients", "rounds"))
    assert len(clients["client"]) == sum(summary["fates"].values())
    assert np.sum(clients["energy_j"]) == pytest.approx(summary["energy_j"])
    assert rounds["simulated_s"][-1] == summary["simulated_s"]
