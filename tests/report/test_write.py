"""The report of a run shows the recorded values, and the page needs no other files."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from raysim.config import loader
from raysim.core import signals
from raysim.core.errors import ReportLostError
from raysim.data.partition import partition
from raysim.data.rules import PartitionOptions
from raysim.executors import in_process
from raysim.executors.in_process import InProcessExecutor
from raysim.experiment import run as experiment
from raysim.population import serialization
from raysim.population.sources import of_settings
from raysim.report import coverage, page, timeline, write
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.loop import run_rounds
from raysim.simulation.participation import never_counted_lines
from raysim.simulation.state import Storage
from raysim.simulation.transition import initial_state
from tests.clocked import FRAIL, MODES, QUICK
from tests.commands import left_with
from tests.conftest import ROOT, settings_of, tiny_settings
from tests.reports import SECTIONS, Page, decoded
from tests.stores import store_in

LOST = ("rounds=3", "clock.deadline_s=0.6", "evaluation.targets=[0.01,0.999]", "diagnostics.every=2")

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
def run(tmp_path_factory) -> SimpleNamespace:
    """Three rounds with a deadline, frail devices and a diagnosis."""
    folder = tmp_path_factory.mktemp("reported")
    uri = store_in(folder)
    settings = settings_of("ca-hfp", *QUICK, *MODES["deadline"], *FRAIL, *LOST, f"tracking.uri={uri}")
    prepared = experiment.prepare(settings, folder / "out")
    summary = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    tables = {name: pq.read_table(folder / "out" / f"{name}.parquet").to_pydict() for name in records.TABLES}
    return SimpleNamespace(folder=folder / "out", uri=uri, summary=summary, page=Page(html), **tables)


def refusal(capsys, *parts: object, command: str = "report") -> str:
    capsys.readouterr()
    code = left_with(command, *parts)
    captured = capsys.readouterr()
    assert code == signals.BAD_INPUT
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def reported(capsys, *parts: object) -> str:
    capsys.readouterr()
    code = left_with("report", *parts)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out.removeprefix("report: ").rstrip("\n")


@pytest.mark.slow
def test_a_run_writes_a_report_with_every_section_and_uploads_it(run):
    assert run.page.sections == SECTIONS
    names = {item.path for item in MlflowClient(run.uri).list_artifacts(run.summary["run_id"])}
    assert {"report.html", "channels.parquet", "partition.parquet"} <= names
    for section in SECTIONS[1:-1]:
        assert f"{section}-1" in run.page.figures


def test_a_page_asks_for_nothing_from_elsewhere_and_keeps_nothing(run):
    for tag, name, value in run.page.attributes:
        assert name not in ("src", "srcset", "data") or value.startswith("data:"), (tag, name, value)
        assert name != "href" or value.startswith("#"), (tag, name, value)
    assert (
        "meta",
        "content",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:",
    ) in run.page.attributes
    ours = run.page.html.replace(page.get_plotlyjs(), "")
    assert len(ours) < 400_000
    assert not re.search(r"https?:|//cdn|localStorage|cookie|top\.location|import\(|fetch\(", ours)


def test_the_headline_is_what_was_spent(run):
    words, summary = run.page.words["headline"], run.summary
    assert f"{summary['bytes_percent_of_fedavg']:.1f} %" in words
    assert f"{summary['flops_percent_of_fedavg']:.1f} %" in words
    assert f"{100 * summary['accuracy']:.2f} %" in words
    assert f"{100 * summary['pruning_ratio_mean']:.1f} %of the parameters" in words
    for outcome, count in summary["fates"].items():
        assert re.search(rf"\b{count} {outcome}\b" if outcome != "counted" else rf"work of {count} counted", words)
    assert "never" in words


def test_the_headline_and_the_summary_name_who_never_counted(run):
    """As the table of clients has it: tiers without any work that counts, and clients that were selected in vain."""
    fates, tiers = {}, {}
    for client, tier, fate in zip(run.clients["client"], run.clients["tier"], run.clients["fate"], strict=True):
        fates.setdefault(client, set()).add(fate)
        tiers.setdefault(tier, set()).add(fate)
    found = run.summary["never_counted"]
    silent = {tier for tier, seen in tiers.items() if "counted" not in seen}
    assert silent <= {each["tier"] for each in found["tiers"]}
    of_tier = dict(zip(run.clients["client"], run.clients["tier"], strict=True))
    in_vain = [client for client, seen in fates.items() if "counted" not in seen and of_tier[client] not in silent]
    assert found["clients"] == sorted(in_vain)
    assert found["tiers"] or found["num_clients"], "a deadline and frail devices"
    for line in never_counted_lines(found):
        assert line[1:] in run.page.words["headline"]
    assert json.loads((run.folder / "summary.json").read_text())["never_counted"] == found


def test_curves_are_the_records(run):
    for place, cost in enumerate(("round", "simulated_s", "bytes", "energy_j"), start=1):
        curve = run.page.traces(f"accuracy-{place}")["global model, test set"]
        factor = 1e6 if cost == "bytes" else 1
        np.testing.assert_allclose(curve["x"], np.array(run.rounds[cost]) / factor)
        np.testing.assert_allclose(curve["y"], 100 * np.array(run.rounds["accuracy/global"], float))
    for tier, curve in run.page.traces("pruning-1").items():
        recorded = np.array(run.rounds[f"pruning_ratio/tier/{tier}"], float)
        np.testing.assert_allclose(np.array(curve["y"], float), 100 * recorded, rtol=1e-6)


def test_pruning_by_client_is_the_mean_over_its_rounds(run):
    clients = {name: np.array(run.clients[name]) for name in ("client", "fate", "tier")}
    ratios, shown = np.array(run.clients["pruning_ratio"], float), 0
    for tier, curve in run.page.traces("pruning-3").items():
        for client, ratio, times in zip(curve["x"], curve["y"], curve["customdata"], strict=True):
            own = (clients["client"] == client) & (clients["fate"] == "counted")
            assert set(clients["tier"][own]) == {tier}
            assert (ratio, times) == (pytest.approx(100 * ratios[own].mean()), own.sum())
            shown += 1
    assert shown == len(set(clients["client"][clients["fate"] == "counted"]))


def test_the_coverage_map_is_the_sum_of_the_channels(run):
    plan = json.loads((run.folder / "plan.json").read_text())
    channels = {name: np.array(column) for name, column in run.channels.items()}
    total, first = sum(outcome == "counted" for outcome in run.clients["fate"]), 0
    for place, group in enumerate(plan["groups"], start=1):
        traces = run.page.traces(f"coverage-{place}")
        for unit in range(group["size"]):
            here = channels["unit"] == first + unit
            for trace, what in (("0", "clients"), ("1", "examples")):
                assert traces[trace]["customdata"][0][unit] == unit
                assert traces[trace]["z"][0][unit] == channels[what][here].sum()
        assert traces["0"]["zmax"] == total
        first += group["size"]
    assert f"{total:,} client rounds" in run.page.words["coverage"]


def test_of_many_channels_neighbours_share_a_cell_that_is_marked_if_one_of_them_is():
    by = np.full(coverage.CELLS * 3 - 1, 60)
    by[[4, 100]] = 0, 1
    group = coverage.Coverage(by, by * 10, np.ones(1, int), np.zeros(1))
    page_of_one = json.loads(page.spec_of(coverage._map(group, slice(0, len(by)), 100)))
    clients, examples, never, starved = (decoded(trace) for trace in page_of_one["data"])
    assert clients["z"].shape == (coverage.CELLS // coverage.PER_LINE, coverage.PER_LINE)
    assert clients["z"][0, :2] == pytest.approx([60, 40])
    assert (clients["customdata"][0, 1], clients["customdata"][-1, -1]) == (3, 3 * coverage.CELLS - 3)
    assert (examples["z"][-1, -1], clients["z"][-1, -1]) == (600, 60)  # two channels share the last cell
    assert [(list(marks["x"]), list(marks["y"])) for marks in (never, starved)] == [([1], [0]), ([1], [1])]


def test_bars_end_when_clients_did(run):
    rows = [{name: column[at] for name, column in run.clients.items()} for at in range(len(run.clients["client"]))]
    worked = [row for row in rows if row["round"] == 1 and row["fate"] not in ("infeasible", "unreachable")]
    first = run.page.figures["timeline-1"]
    assert next(choice["layout"]["yaxis.ticktext"] for choice in run.page.choices["timeline"]) == ids_of(first)
    traces = run.page.traces("timeline-1")
    assert sorted(map(int, ids_of(first))) == sorted(row["client"] for row in worked)
    shown = [page_trace for page_trace in first["data"] if page_trace["visible"]]
    assert [trace["name"] for trace in shown[:3]] == ["download", "compute", "upload"]
    assert {trace["name"] for trace in shown[3:]} <= {row["fate"] for row in worked} | {"straggler"}
    assert {row["fate"] for row in worked} - {"counted"} <= {trace["name"] for trace in shown[3:]}
    assert traces["upload"]["orientation"] == "h"


def ids_of(figure: dict) -> list[str]:
    return figure["layout"]["yaxis"]["ticktext"]


def test_the_partition_is_who_owns_what(run):
    drawn = run.page.traces("partition-1")["0"]
    table = pq.read_table(run.folder / "partition.parquet").to_pydict()
    assert np.array(drawn["z"]).sum() == sum(table["rows"]) > 100
    assert list(drawn["x"]) == sorted(set(table["client"]))


def test_diagnostics_are_predicted_against_measured(run):
    curves = run.page.traces("diagnostics-1")
    assert {"measured zero fill", "predicted zero fill"} <= set(curves)
    assert curves["measured zero fill"]["y"] == [run.rounds["diagnostics/measured_zero_fill"][1]]


def test_the_settings_and_versions_are_told(run):
    assert "keep_ratio: 0.25" in run.page.words["config"]
    assert run.summary["run_id"] in run.page.words["config"]
    assert "version.torch" in run.page.words["config"]


@pytest.mark.slow
def test_the_report_is_written_anew_from_folder_or_artifacts(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Path(reported(capsys, run.folder, "--output", tmp_path / "a.html"))
    again = Path(reported(capsys, run.summary["run_id"], "--tracking-uri", run.uri))
    assert again == tmp_path / f"report-{run.summary['run_id']}.html"
    assert first.read_text() == again.read_text() == run.page.html


@pytest.mark.slow
def test_the_pages_commands_run(run, capsys, tmp_path, monkeypatch):
    """Its runs are those of this module: the one above, and one of FedAvg on the same data."""
    page_text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    commands = [shlex.split(command) for command in re.findall(r"^```sh\n(.*)\n```$", page_text, re.MULTILINE)]
    assert [command[1] for command in commands] == ["run", "report", "run", "report"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.folder, tmp_path / "runs" / "first", ignore=shutil.ignore_patterns("checkpoints"))
    settings = settings_of("fedavg", *QUICK, *MODES["sync"], *FRAIL, "rounds=2", f"tracking.uri={run.uri}")
    prepared = experiment.prepare(settings, tmp_path / "runs" / "fedavg")
    dense = experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    assert Page(Path(reported(capsys, *commands[1][2:])).read_text()).html == run.page.html
    told = Page(Path(reported(capsys, *commands[3][2:])).read_text())
    assert f"{100 * run.summary['energy_j'] / dense['energy_j']:.1f} %" in told.words["headline"]
    assert f"fedavg {100 * dense['accuracy']:.2f} %" in told.words["headline"]
    assert len(told.traces("accuracy-2")["fedavg, test set"]["x"]) == 2
    dense_run = tmp_path / "runs" / "fedavg" / "run.json"
    noted = json.loads(dense_run.read_text())
    dense_run.write_text(json.dumps(noted | {"data_sha256": "other"}))
    assert "has other data than" in refusal(capsys, *commands[3][2:])
    dense_run.unlink()  # whether its data are the same is not known
    reported(capsys, *commands[3][2:])


@pytest.mark.slow
def test_a_run_of_long_ago_lacks_parts_and_says_so(run, capsys, tmp_path):
    """It has no counts of channels, no table of its partition, and some columns less."""
    old = tmp_path / "old"
    shutil.copytree(run.folder, old, ignore=shutil.ignore_patterns("channels*", "partition.parquet", "checkpoints"))
    told = Page(Path(reported(capsys, old)).read_text())
    assert told.sections == SECTIONS
    assert "started before channels were counted" in told.words["coverage"]
    assert not [figure for figure in told.figures if figure.startswith(("coverage", "partition"))]
    assert any(tag == "img" and value.startswith("data:image/png") for tag, name, value in told.attributes)


@pytest.mark.slow
def test_a_run_that_has_not_finished_is_told_so_far(run, capsys, tmp_path):
    going_on = tmp_path / "going on"
    shutil.copytree(run.folder, going_on, ignore=shutil.ignore_patterns("*.parquet", "summary.json", "*.html"))
    for table, last in (("clients", 2), ("channels", 2), ("rounds", 1)):
        (going_on / table).mkdir(exist_ok=True)
        for round in range(1, last + 1):
            part = f"{table}/round_{round:06d}.parquet"
            shutil.copy(run.folder / part, going_on / part)
    shutil.copy(run.folder / "devices.parquet", going_on)
    run_id = tracked(going_on, run.uri)
    told = Page(Path(reported(capsys, going_on)).read_text())
    assert "has not finished: 1 of 3 rounds" in told.words["headline"]
    assert "under the same clock mode, deadline, availability and batteries" in told.words["headline"]
    assert "not compared" not in told.words["headline"]
    (curve,) = [trace["x"] for name, trace in told.traces("accuracy-1").items() if name.startswith("global")]
    assert list(curve) == [1]
    by_id = Path(reported(capsys, run_id, "--tracking-uri", run.uri, "--output", tmp_path / "by-id.html"))
    assert by_id.read_text() == (going_on / "report.html").read_text()
    going_on.rename(tmp_path / "elsewhere")
    refused = refusal(capsys, run_id, "--tracking-uri", run.uri)
    assert f"RUN='{run_id}' has not finished, and {going_on}, where its rounds are, cannot be reached" in refused


def tracked(folder: Path, uri: str) -> str:
    """Tell MLflow of a run what it knows while that goes on; return its id."""
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    noted = json.loads((folder / "run.json").read_text()) | {"run_id": run_id, "output_dir": str(folder)}
    (folder / "run.json").write_text(json.dumps(noted))
    for name in ("config.yaml", "run.json"):
        client.log_artifact(run_id, str(folder / name))
    return run_id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "told", "how"),
    [
        ("summary.json", {"state": "stopped early", "failure": ""}, "was stopped early, for better trials: 3 of 3"),
        ("summary.json", {"state": "failed", "failure": "diverged"}, "has failed (diverged): 3 of 3"),
        ("summary.json", {"failure": "diverged"}, "has failed (diverged): 3 of 3"),
        ("run.json", {"state": "stopped"}, ""),
    ],
)
def test_a_summary_tells_whether_a_run_has_ended_as_it_should(run, capsys, tmp_path, file, told, how):
    """Trials of a sweep and runs of a comparison have one however they end; run.json may tell of what came later."""
    ended = tmp_path / "ended"
    shutil.copytree(run.folder, ended, ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    before = json.loads((ended / file).read_text())
    (ended / file).write_text(json.dumps(before | told))
    words = Page(Path(reported(capsys, ended)).read_text()).words["headline"]
    assert how in words
    assert ("This run" in words) == bool(how)


@pytest.mark.slow
def test_what_is_no_run_or_has_no_round_is_refused(run, capsys, tmp_path):
    assert "RUN='" in refusal(capsys, tmp_path / "nothing")
    nobody = "0" * 32
    assert f"RUN='{nobody}'" in refusal(capsys, nobody, "--tracking-uri", run.uri)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run.folder / "config.yaml", empty)
    assert "has no round yet" in refusal(capsys, empty)
    assert f"--output='{run.folder}'" in refusal(capsys, run.folder, "--output", run.folder)
    assert "--baseline: RUN='nothere' is neither" in refusal(capsys, run.folder, "--baseline", "nothere")
    (tmp_path / "a-sweep").mkdir()
    (tmp_path / "a-sweep" / "sweep.yaml").touch()
    assert f"nearest folder: '{empty}'" in refusal(capsys, tmp_path / "a-swep")


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    return content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :]


def without(column: str) -> Callable[[bytes], bytes]:
    def dropped(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pq.read_table(pa.BufferReader(content)).drop_columns([column]), sink)
        return sink.getvalue().to_pybytes()

    return dropped


@pytest.mark.slow
def test_damaged_records_are_one_clear_message_of_every_command(run, capsys, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(run.folder, damaged, ignore=shutil.ignore_patterns("checkpoints"))
    summary = json.loads((damaged / "summary.json").read_text())
    del summary["files_sha256"]  # as in a run of before, whose files have no digests
    (damaged / "summary.json").write_text(json.dumps(summary))
    for name, harm, message, commands in (
        ("rounds.parquet", cut_off, "cannot be read: ", ("report", "compare", "replay")),
        ("rounds.parquet", without("energy_j"), "rounds.parquet has no 'energy_j'", ("report", "compare")),
        ("clients.parquet", cut_off, "cannot be read: ", ("report", "replay")),
        ("clients.parquet", overwritten, "cannot be read: ", ("report", "replay")),
        ("clients.parquet", without("fate"), "clients.parquet has no 'fate'", ("report", "replay")),
        ("channels.parquet", cut_off, "cannot be read: ", ("report",)),
        ("channels.parquet", without("unit"), "channels.parquet has no 'unit'", ("report",)),
        ("partition.parquet", cut_off, "cannot be read: ", ("report",)),
        ("devices.parquet", cut_off, "cannot be read: ", ("report", "replay")),
        ("plan.json", lambda _: b'{"units": 3}', "plan.json has no 'groups'", ("report",)),
        ("run.json", lambda _: b"[]", "run.json is not a JSON object", ("report", "compare", "resume")),
        ("summary.json", lambda _: b"[]", "summary.json is not a JSON object", ("report", "compare", "replay")),
        ("config.yaml", lambda whole: whole + b"rouds: 3\n", "is not a setting", ("report", "compare", "replay")),
    ):
        whole = (damaged / name).read_bytes()
        (damaged / name).write_bytes(harm(whole))
        for command in commands:
            refused = refusal(capsys, damaged, command=command)
            assert refused.startswith(f"raysim: RUN='{damaged}'")
            assert message in refused
        (damaged / name).write_bytes(whole)


@pytest.mark.slow
def test_a_report_that_fails_leaves_a_finished_run_and_is_said(tmp_path, monkeypatch, capsys):
    def broken(*_: object) -> str:
        raise ZeroDivisionError("a figure went wrong")

    settings = settings_of("fedavg", *QUICK, "rounds=1", f"tracking.uri={store_in(tmp_path)}")
    with monkeypatch.context() as patched:
        patched.setattr(write, "render", broken)
        prepared = experiment.prepare(settings, tmp_path / "out")
        with pytest.raises(ReportLostError, match="a figure went wrong; all results are in"):
            experiment.run(prepared, in_process.InProcessRunner(), time.monotonic())
    assert "Traceback" in capsys.readouterr().err
    client = MlflowClient(prepared.tracker.uri)
    assert client.get_run(prepared.tracker.run_id).info.status == "FINISHED"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"]
    told = Page(Path(reported(capsys, tmp_path / "out")).read_text())
    rows = [" ".join(row.split()) for row in told.words["headline"].split("\n")]
    assert any("100.0 %" in row for row in rows)


def test_of_a_large_cohort_some_are_shown_the_last_among_them():
    count = 1000
    rows = {
        "round": np.ones(count, np.int64), "client": np.arange(count), "start_s": np.zeros(count),
        "lasts_s": np.random.default_rng(0).random(count) + 1, "fate": np.zeros(count, np.int32),
        "fate_names": np.array(["counted"]), "tier": np.zeros(count, np.int32), "tier_names": np.array(["a"]),
    }  # fmt: skip
    rows |= {"total_s": rows["lasts_s"]} | dict.fromkeys(("download_s", "compute_s", "upload_s"), rows["lasts_s"] / 3)
    bars = timeline.bars_of(rows, 0.0, 2.0)
    assert (len(bars.begin_s), bars.num_started) == (timeline.CLIENTS, count)
    assert bars.rows["client"][-1] == rows["lasts_s"].argmax()
    assert bars.rows["client"][0] == rows["lasts_s"].argmin()
    np.testing.assert_allclose(bars.phases.sum(axis=0), bars.rows["lasts_s"])


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Records with every column that a run of this version writes, two million rows of clients."""
    small, folder = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("large")
    tiers = [f"population.tiers.{tier}.{power}" for tier in range(4) for power in ("train_watts=2", "idle_watts=1")]
    settings = tiny_settings(
        "rounds=1", "diagnostics.every=1", "model.name=mlp", "model.options={hidden: [6]}", *tiers
    )
    scenario = build_scenario(settings)
    list(run_rounds(scenario, initial_state(scenario), InProcessExecutor(scenario.workload), Storage(small, 1, 1)))
    many = (f"population.clients={CLIENTS}", f"selection.clients_per_round={CLIENTS}", f"rounds={ROUNDS}")
    settings = tiny_settings(*many, "data.partition.name=iid", *tiers)
    (folder / "config.yaml").write_text(loader.to_yaml(settings))
    devices = of_settings(settings.population, 0)
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
        name: (np.repeat(column, ROUNDS).astype(np.float64) * np.cumsum(rng.random(ROUNDS))).astype(column.dtype)
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
def test_the_report_of_ten_thousand_clients_in_two_hundred_rounds_is_small_and_quick(large):
    assert pq.read_metadata(large / "clients.parquet").num_rows == CLIENTS * ROUNDS
    done = subprocess.run([sys.executable, "-c", MEASURING, str(large)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout.splitlines()[-1])
    html = (large / "report.html").read_bytes()
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
