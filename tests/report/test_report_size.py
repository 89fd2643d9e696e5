"""The report of 10,000 clients in 200 rounds, all of them in every round: size, time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysim.config import loader
from raysim.data.partition import partition
from raysim.data.rules import PartitionOptions
from raysim.executors.in_process import InProcessExecutor
from raysim.population import serialization
from raysim.population.sources import of_settings
from raysim.report import coverage
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.state import Storage
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings
from tests.reports import SECTIONS, Page

CLIENTS, ROUNDS = 10_000, 200
VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 4096, 4096)
GROUPS = (*VGG16, *[8192] * 20)
"""Those of VGG16 with its classifier, and more and wider ones than have a map of each channel."""
FATES = np.array(["counted", "late", "dropped"])
MEASURING = """
import json, resource, sys, time
from raysim.report import write
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak_mb(), time.monotonic()
write.of_named(sys.argv[1])
print(json.dumps({"seconds": time.monotonic() - started, "grown_mb": peak_mb() - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Records with every column that a run of this version writes, two million rows of clients."""
    small, folder = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("large")
    tiers = [f"population.tiers.{tier}.{power}" for tier in range(4) for power in ("train_watts=2", "idle_watts=1")]
    settings = tiny_settings(
        "rounds=1", "diagnostics.every=1", "model.name=mlp", "model.options={hidden: [6]}", *tiers
    )
    scenario = build_scenario(settings)
    list(run_rounds(scenario, initial_state(scenario), InProcessExecutor(scenario.workload), Storage(small, 1, 1)))
    many = (f"population.clients={CLIENTS}", f"selection.clients_per_round={CLIENTS}", f"rounds={ROUNDS}")
    large = tiny_settings(*many, "data.partition.name=iid", *tiers)
    (folder / "config.yaml").write_text(loader.to_yaml(large))
    devices = of_settings(large.population, 0)
    serialization.save(devices, folder / "devices.parquet")
    groups = [{"name": f"features.{place}", "size": size} for place, size in enumerate(GROUPS)]
    (folder / "plan.json").write_text(json.dumps({"groups": groups}))
    (folder / "run.json").write_text(json.dumps({"run_id": "0" * 32, "environment": {}}))
    full = {"parameters": 15_000_000, "model_bytes": 6e7, "gradient_bytes": 6e7, "train_flops": 9e8,
            "activation_bytes": 1e6}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"full_model": full, "pruning_ratio_mean": 0.5, "targets": []}))
    rng = np.random.default_rng(0)
    write_rounds(small, folder, rng)
    write_clients(small, folder, np.array(devices.tiers)[devices.tier_of], rng)
    write_channels(folder, rng)
    owned = partition(rng.integers(0, 100, 50_000), CLIENTS, "iid", PartitionOptions(), 0)
    client = np.repeat(np.arange(CLIENTS), owned.counts)
    owns, rows = np.unique(np.stack([client, rng.integers(0, 100, len(client))]), axis=1, return_counts=True)
    records.write_all([{"client": owns[0], "label": owns[1], "rows": rows}], folder / "partition.parquet")
    return folder


def write_rounds(small: Path, folder: Path, rng: np.random.Generator) -> None:
    one = records.read(records.path_of(small / "rounds", 1))
    grown = {
        name: np.repeat(column, ROUNDS).astype(np.float64) * np.cumsum(rng.random(ROUNDS))
        for name, column in one.items()
        if column.dtype.kind in "fi"
    }
    records.write_all([grown | {"round": np.arange(1, ROUNDS + 1)}], folder / "rounds.parquet")


def write_clients(small: Path, folder: Path, tier: np.ndarray, rng: np.random.Generator) -> None:
    schema = pq.read_schema(small / "clients" / "round_000001.parquet")
    varied = {"start_s": 1.0, "lasts_s": 30.0, "pruning_ratio": 0.9, "download_s": 5.0, "compute_s": 20.0,
              "upload_s": 5.0, "total_s": 30.0, "energy_j": 9.0, "accuracy": 1.0}  # fmt: skip
    columns = {
        field.name: pa.array(np.full(CLIENTS, "tier") if field.type == pa.string() else np.ones(CLIENTS), field.type)
        for field in schema
    }
    columns |= {"client": pa.array(np.arange(CLIENTS)), "tier": pa.array(tier)}
    with pq.ParquetWriter(folder / "clients.parquet", schema) as writer:
        for round in range(1, ROUNDS + 1):
            drawn = {name: pa.array(rng.random(CLIENTS) * most) for name, most in varied.items()}
            drawn |= {"round": pa.array(np.full(CLIENTS, round)), "fate": pa.array(rng.choice(FATES, CLIENTS))}
            writer.write_table(pa.table(columns | drawn).select(schema.names).cast(schema))


def write_channels(folder: Path, rng: np.random.Generator) -> None:
    """The last 8 channels of each group are trained by nobody, the 8 before them by few."""
    units, last = sum(GROUPS), np.concatenate([np.arange(size)[::-1] for size in GROUPS])
    few = np.select([last < 8, last < 16], [0, 100], CLIENTS // 3)
    unit = np.arange(units, dtype=np.int32)
    clients, examples = rng.integers(few // 2, few + 1).astype(np.int32), rng.integers(0, 50_000, units)
    tables = [
        {"round": np.full(units, round, np.int32), "unit": unit, "clients": clients, "examples": examples}
        for round in range(1, ROUNDS + 1)
    ]
    records.write_all(tables, folder / "channels.parquet")


@pytest.mark.long
def test_the_report_of_ten_thousand_clients_in_two_hundred_rounds_is_small_and_quick(folder):
    assert pq.read_metadata(folder / "clients.parquet").num_rows == CLIENTS * ROUNDS
    done = subprocess.run([sys.executable, "-c", MEASURING, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout.splitlines()[-1])
    html = (folder / "report.html").read_bytes()
    assert len(html) < 8_000_000
    assert took["seconds"] < 60
    assert took["grown_mb"] < 250  # the columns that are read are 250 MB, all of them 600
    page = Page(html.decode())
    assert page.sections == SECTIONS
    assert len([name for name in page.figures if name.startswith("coverage")]) == coverage.GROUPS + 1
    assert "A cell is the mean of 8 neighbours" in page.words["coverage"]
    assert "2,000,000 clients" in page.words["headline"]
    never, starved = (page.traces("coverage-1")[mark] for mark in ("2", "3"))
    assert (list(never["x"]), set(never["y"])) == (list(range(24, 32)), {1})
    assert (list(starved["x"]), set(starved["y"])) == (list(range(16, 24)), {1})
