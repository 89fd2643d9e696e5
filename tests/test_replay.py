"""A run timed anew from its records: on its own devices equal to the bit, on others as far as records tell."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import settings_of

from raysim import experiment, simulation
from raysim.config_devices import PopulationSettings
from raysim.replay import run as replays
from raysim.replay import source, summary

TIERS = (
    {
        "name": "slow", "share": 0.5, "keep_ratio": 0.5, "flops_per_s": 2e7, "down_bytes_per_s": 2e4,
        "up_bytes_per_s": 1e4, "latency_s": 0.05, "step_overhead_s": 0.01, "compute_variation": 0.2,
        "link_variation": 0.3, "train_watts": 3.0, "idle_watts": 0.5, "radio_j_per_byte": 1e-5,
    },
    {
        "name": "fast", "share": 0.5, "keep_ratio": 1.0, "flops_per_s": 1e8, "down_bytes_per_s": 1e5,
        "up_bytes_per_s": 5e4, "compute_variation": 0.1, "train_watts": 5.0, "idle_watts": 1.0,
        "memory_bytes_per_s": 1e7,
    },
)  # fmt: skip
FAILING = tuple(tier | {"failure_rate": 0.3} for tier in TIERS)
ON_BATTERIES = tuple(tier | {"battery_j": 12.0, "charge_watts": 0.05, "failure_rate": 0.1} for tier in TIERS)
ONLINE_AT_TIMES = tuple(tier | {"availability": 0.6, "availability_swing": 0.3} for tier in TIERS)
ASYNC = ("clock.mode=async", "clock.buffer_size=3", "clock.concurrency=4")
DEADLINE = ("clock.mode=deadline", "clock.deadline_s=4")
PARTIAL = (*DEADLINE, "clock.accept_partial=true", "training.epochs=3")
OVER = ("clock.mode=over-selection", "clock.over_selection=1.5")
BUSY = ("clock.server_s=0.7",)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs a tiny experiment once for each set of settings; returns its folder."""
    folders: dict[tuple[object, ...], Path] = {}
    base = tmp_path_factory.mktemp("replay")
    uri = f"sqlite:///{base}/store/mlflow.db"

    def run(*overrides: str, tiers=TIERS, method: str = "random", rounds: int = 4) -> Path:
        key = (overrides, json.dumps(tiers), method, rounds)
        if key not in folders:
            given = (
                f"population.tiers={json.dumps(list(tiers))}", "population.clients=8", f"rounds={rounds}",
                f"tracking.uri={uri}", "evaluation.targets=[0.05, 0.1, 0.99]", "costs.price_per_kwh=0.3",
                "experiment=replay", *overrides,
            )  # fmt: skip
            folder = base / f"run{len(folders)}"
            prepared = experiment.prepare(settings_of(method, *given), folder)
            uploading = pytest.MonkeyPatch()
            if "keep_model" not in overrides:  # it takes seconds, and a replay does not look at it
                uploading.setattr(type(prepared.tracker), "model", lambda *_: "")
            experiment.run(prepared, simulation.InProcessRunner(), time.monotonic())
            uploading.undo()
            folders[key] = folder
        return folders[key]

    run.uri = uri
    return run


def replayed(folder: Path, tiers=None, deadline_s=None):
    recorded = source.read(str(folder))
    population = None if tiers is None else PopulationSettings(clients=8, tiers=list(tiers))
    return replays.replay(recorded, population, deadline_s)


@pytest.mark.parametrize(
    "tiers", [TIERS, FAILING, ON_BATTERIES, ONLINE_AT_TIMES], ids=["sure", "failing", "batteries", "at times"]
)
@pytest.mark.parametrize(
    "mode", [(), DEADLINE, PARTIAL, OVER, ASYNC], ids=["sync", "deadline", "partial", "over", "async"]
)
def test_on_its_own_devices_a_run_is_reproduced_to_the_bit(ran, mode, tiers):
    assert_reproduced(ran(*mode, *BUSY, tiers=tiers))


def assert_reproduced(folder: Path) -> None:
    replay = replayed(folder)
    recorded, now = replay.recorded, summary.summary_from(replay)
    assert now["exact"]
    assert now["unknown"] == now["flagged_rounds"] == []
    shared = now.keys() & recorded.summary.keys() - {"costs"}
    for key in shared - {"targets"}:
        assert now[key] == recorded.summary[key], key
    assert [{k: v for k, v in each.items() if k != "known"} for each in now["targets"]] == recorded.summary["targets"]
    assert now["costs"].items() <= recorded.summary["costs"].items()
    assert now["round_s"] == recorded.rounds["round_s"].tolist()
    for column in ("simulated_s", "energy_j", "train_flops"):
        assert [getattr(each.totals, column) for each in replay.rounds] == recorded.rounds[column].tolist()
    table = {
        name: np.concatenate([each.clients[name] for each in replay.rounds]) for name in replay.rounds[0].clients
    }
    assert table.pop("row").tolist() == list(range(len(recorded.clients["client"])))
    for name, column in table.items():
        np.testing.assert_array_equal(column, recorded.clients[name], err_msg=name)
