"""`raysim compare`: a row is the mean of runs that differ only in their seed, as the runs' own records give it."""

import csv
import functools
import io
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console
from scipy import stats

from raysim.analysis.comparison import compare, labels, notes, rows
from raysim.analysis.comparison.columns import columns_of, csv_lines
from raysim.analysis.comparison.curves import curve_of, mean_curve
from raysim.analysis.comparison.run_record import RunRecord
from raysim.analysis.comparison.table import front as pareto_front
from raysim.analysis.comparison.table import table_of as compute_table
from raysim.analysis.tables import terminal, text
from raysim.analysis.tables.columns import parts_of
from raysim.core import signals
from raysim.core.errors import SettingError
from raysim.core.storage.local import storage_path
from raysim.report import write
from tests.analysis.study import test_run as test_comparison
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY, tiny_settings


def record(
    *overrides: str,
    accuracies=(0.5, 0.7, 0.8),
    state: str = "",
    data: str = "a",
    name: str = "",
    scale: float = 1.0,
    joules: float = 5.0,
) -> RunRecord:
    """A run of the tiny experiment that had these accuracies; each round costs as much as the one before."""
    settings, count = tiny_settings(*overrides), len(accuracies)
    place = np.arange(1, count + 1)
    columns = {
        "round": place, "bytes": place * 2e6 * scale, "simulated_s": place * 3.0 * scale,
        "energy_j": place * joules * scale, "accuracy": np.array(accuracies, dtype=float), "train_flops": place * 1e9,
        "pruning_ratio/mean": np.linspace(0.2, 0.4, count), "clients/counted": place.astype(float),
    }  # fmt: skip
    name = name or f"{settings.method.name} {overrides} {settings.seed}"
    return RunRecord(name, "", settings, state, {"data": data, "partition": "p"}, columns if count else {})


def table_of(*records: RunRecord, baseline: str | None = None, targets=(0.6,)):
    grouped, repeated = rows.rows_of(records)
    against = rows.baseline_of(grouped, baseline)
    return compute_table(grouped, against, targets), [*repeated, *notes.limits_of(grouped, against)]


def test_runs_that_differ_in_their_seed_alone_are_one_row():
    runs = [
        record(f"method.name={method}", f"seed={seed}", f"training.learning_rate={rate}", *own)
        for method, rate in (("heterofl", 0.1), ("heterofl", 0.2), ("fedavg", 0.2))
        for seed, own in ((0, ("experiment=other",)), (1, ("checkpoint.keep=5", "evaluation.targets=[0.5]")))
    ]
    grouped, repeated = rows.rows_of(runs)
    assert [row.label for row in grouped] == ["heterofl, learning_rate 0.1", "heterofl, learning_rate 0.2", "fedavg"]
    assert [row.seeds for row in grouped] == [[0, 1]] * 3
    assert grouped[2].other_settings == {"training.learning_rate": "0.2"}
    assert rows.baseline_of(grouped, None).label == "fedavg"
    assert not repeated
    with pytest.raises(SettingError, match=r"--baseline='heterofl' is 2 rows; rows, nearest first: 'heterofl, lea"):
        rows.baseline_of(grouped, "heterofl")
    with pytest.raises(SettingError, match=r"--baseline='fedvag' is no row; rows, nearest first: 'fedavg'"):
        rows.baseline_of(grouped, "fedvag")


def test_of_many_settings_that_differ_a_row_is_called_by_as_few_as_set_it_apart():
    other = ("population.tiers.0.latency_s=0.2", "population.tiers.1.latency_s=0.3", "population.tiers.2.share=0.35",
             "population.tiers.3.share=0.15", "training.batch_size=8", "training.momentum=0.5")  # fmt: skip
    grouped, _ = rows.rows_of([record(), record(*other), record(*other, "training.schedule.factor=0.5")])
    assert len({row.label for row in grouped}) == 3
    assert all(row.label.count(",") <= 2 for row in grouped)
    assert len(grouped[1].other_settings) > labels.SHOWN_SETTINGS
    assert labels.shortly(grouped[1].other_settings).endswith(" more")


def test_a_run_that_repeats_another_counts_once_the_one_that_got_farther():
    first, again = record(name="first", accuracies=(0.5,), state="failed"), record(name="again")
    grouped, repeated = rows.rows_of([first, again])
    assert [run.name for run in grouped[0].runs] == ["again"]
    assert repeated == ["Left out is first, which repeats again: same settings, same seed"]


def test_a_row_has_means_and_sample_deviations_and_per_cent_seed_by_seed():
    own = [record("method.name=heterofl", f"seed={seed}", scale=scale) for seed, scale in ((0, 0.5), (1, 0.2))]
    dense = [
        record("method.name=fedavg", f"seed={seed}", accuracies=values, scale=scale)
        for seed, values, scale in ((0, (0.4, 0.6, 0.9), 1.0), (1, (0.2, 0.3, 0.4), 2.0))
    ]
    (heterofl, fedavg), limits = table_of(*own, *dense)
    assert fedavg["accuracy"]["mean"] == pytest.approx(0.65)
    assert fedavg["accuracy"]["std"] == pytest.approx(np.std([0.9, 0.4], ddof=1))
    assert (fedavg["accuracy_last10"]["mean"], fedavg["leading"]) == (None, "accuracy"), "of three evaluations"
    assert heterofl["megabytes"]["mean"] == pytest.approx(np.mean([3.0, 1.2]))
    assert heterofl["megabytes"]["percent"] == pytest.approx(np.mean([50.0, 10.0]))
    assert heterofl["points"] == pytest.approx(100 * np.mean([0.8 - 0.9, 0.8 - 0.4]))
    interval = stats.ttest_rel([80, 80], [90, 40]).confidence_interval(0.95)
    assert (heterofl["points_low"], heterofl["points_high"]) == pytest.approx((interval.low, interval.high))
    assert heterofl["pruning_ratio"]["mean"] == pytest.approx(np.average([0.2, 0.3, 0.4], weights=[1, 2, 3]))
    target = fedavg["targets"][0]
    assert (target["reached"], target["of"], target["rounds"]["mean"]) == (1, 2, 2.0)
    assert heterofl["targets"][0]["megabytes"]["mean"] == pytest.approx(np.mean([2.0, 0.8]))
    assert heterofl["targets"][0]["megabytes"]["percent"] == pytest.approx(50.0)
    assert not limits


@pytest.mark.parametrize(("other", "leads"), [(20, "accuracy_last10"), (19, "accuracy"), (1, "accuracy")])
def test_the_last_ten_lead_a_table_only_where_every_run_has_twice_as_many(other, leads):
    """Else they would be the mean over a whole run, and rows would be compared by different things."""
    long = record("method.name=fedavg", accuracies=(0.1,) * 10 + (0.7,) * 9 + (0.8,))
    table, _ = table_of(long, record(accuracies=(0.5,) * other))
    assert {row["leading"] for row in table} == {leads}
    headings = [column.heading for column in columns_of(table)]
    is_shown = leads == "accuracy_last10"
    assert headings[2] == ("accuracy % last 10" if is_shown else "accuracy % final")
    assert ("accuracy % last 10" in headings) == is_shown
    assert table[1]["points"] == pytest.approx(100 * (0.5 - (0.71 if is_shown else 0.8)))
    assert ("of the last 10" in notes.how_to_read("fedavg", columns_of(table))) == is_shown


def test_an_automatic_target_lies_above_chance(tmp_path):
    def targets(accuracy: float, num_classes: int | None, *given: str) -> list[float]:
        runs = [replace(record(*given, accuracies=(accuracy,)), num_classes=num_classes)]
        grouped, _ = rows.rows_of(runs)
        return compare.targets_of(grouped, grouped[0])

    assert targets(0.9, 10) == [0.85]
    assert targets(0.21, 10) == [0.19]
    assert targets(0.19, 10) == targets(0.5, 2) == targets(0.57, 2) == []
    assert targets(0.11, 100) == []
    assert targets(0.12, 100) == [0.11]
    assert targets(0.12, 10, "evaluation.targets=[0.05]") == [0.05], "it was asked for"
    assert targets(0.12, None) == [0.11], "a record of an earlier version"


def test_what_no_run_reached_is_not_told_as_a_number():
    table, _ = table_of(record(), record("seed=1", accuracies=(0.1, 0.65)), targets=(0.75, 0.99))
    columns = {column.heading: column.cells[0] for column in columns_of(table)}
    assert columns["to 75 % rounds"] == "3 (1 of 2)"
    assert columns["to 99 % rounds"] == "not reached (0 of 2)"
    assert "to 99 % MB" not in columns


def test_runs_that_fell_short_are_left_out_of_a_row_that_has_whole_ones_and_marked_where_there_are_none():
    short = record("seed=1", accuracies=(0.9,), state="failed")
    lone = record("method.name=fedavg", accuracies=(0.95,), state="running", scale=0.1)
    never = record("method.name=random", accuracies=(), state="failed")
    (whole, running, nothing), limits = table_of(record(), short, lone, never, baseline="ca-hfp")
    assert (whole["counted"], whole["accuracy"]["mean"], whole["is_whole"]) == (1, 0.8, True)
    assert (running["accuracy"]["mean"], running["is_whole"], running["fronts"]) == (0.95, False, [])
    assert whole["fronts"] == ["megabytes", "simulated_s", "energy_j"]
    assert "ca-hfp: seed 1 failed after round 1 of 2; its figures are those of the other 1" in limits
    assert "fedavg: seed 0 running after round 1 of 2" in limits
    assert nothing["accuracy"]["mean"] is None
    states = next(column for column in columns_of([whole, running, nothing]) if column.lower == "state")
    assert states.cells == ["", "running, 1 rounds", "failed, no round"]


def test_other_data_and_other_seeds_are_told_below_the_table():
    _, limits = table_of(record(), record("method.name=fedavg", data="b"), record("method.name=random", "seed=3"))
    assert "ca-hfp: other data: their accuracies cannot be compared with fedavg" in limits
    assert any(note.startswith("Not the same seeds: fedavg has 0; random has 3") for note in limits)


def test_per_cent_and_points_are_of_the_seeds_that_row_and_baseline_share():
    dense = [record("method.name=fedavg", f"seed={seed}") for seed in (0, 1)]
    more = [record("method.name=random", f"seed={seed}", scale=scale) for seed, scale in ((0, 0.5), (7, 9.0))]
    table, _ = table_of(*dense, *more, record("method.name=magnitude", "seed=3"), targets=(0.6,))
    columns = {column.heading: column.cells for column in columns_of(table)}
    assert columns["bytes moved MB"] == ["6 (100 %)", "28.5 (50 %*)", "6"]
    assert columns["to 60 % MB"] == ["4 (100 %)", "19 (50 %*)", "4"]
    assert columns["points to baseline"] == ["+0.0 [+0.0, +0.0]", "+0.0*", "-"]
    below = [notes.how_to_read("fedavg", columns_of(part)) for part in (table, table[:1])]
    assert ["* Only over the seeds that both rows have" in note for note in below] == [True, False]
    read = list(csv.DictReader(io.StringIO(text.to_csv(csv_lines(table)))))
    for name in ("megabytes_percent_seeds", "to_0.6_megabytes_percent_seeds", "points_seeds"):
        assert [row[name] for row in read] == ["2", "1", "0"]


def test_points_are_of_all_seeds_where_the_baseline_has_reached_nothing_with_one():
    """Per cent of nothing there is not; points to it there are."""
    dense = [record("method.name=fedavg", f"seed={seed}", accuracies=(seed / 2,)) for seed in (0, 1)]
    table, _ = table_of(*dense, *(record("method.name=random", f"seed={seed}", accuracies=(0.5,)) for seed in (0, 1)))
    columns = {column.heading: column.cells for column in columns_of(table)}
    assert columns["points to baseline"] == ["+0.0 [+0.0, +0.0]", "+25.0 [-292.7, +342.7]"]
    assert table[1]["accuracy"]["percent_seeds"] == [1]


def test_energy_that_was_not_counted_is_no_number():
    """Of two rows with it there is a front, of one alone there is none."""
    free = [record("method.name=random", joules=0.0), record("method.name=fedavg", joules=0.0)]
    for counted, front in (((record(),), False), ((record(), record("method.name=magnitude")), True)):
        table, _ = table_of(*free, *counted)
        for row, line in zip(table[:2], csv.DictReader(io.StringIO(text.to_csv(csv_lines(table)))), strict=False):
            for told in (row["energy_j"], row["targets"][0]["energy_j"]):
                assert (told["mean"], told["percent"]) == (None, None)
            assert (line["energy_j_mean"], line["energy_j_percent"], line["to_0.6_energy_j_mean"]) == ("", "", "")
        assert table[2]["energy_j"]["mean"] == 15
        assert ["energy_j" in row["fronts"] for row in table] == [False, False, *[front for _ in counted]]
        columns = {column.heading: column.cells for column in columns_of(table)}
        assert columns["devices J"] == ["-", "-", *["15" for _ in counted]]
    assert "devices J" not in {column.heading for column in columns_of(table_of(*free)[0])}


def test_names_are_printed_as_they_are(capsys):
    """Brackets are no markup, colons no pictures."""
    names = ["ca-hfp [old]", "ca-hfp [new]", "x [/b]", "a:100:b"]
    runs = [replace(record(f"training.epochs={place}"), label=name) for place, name in enumerate(names, start=1)]
    table, _ = table_of(*runs)
    terminal.show("on [/data]", columns_of(table), [False] * len(names), ["a note [/on] it"])
    printed = capsys.readouterr().out
    for name in ("on [/data]", *names, "a note [/on] it"):
        assert name in printed


def test_a_front_has_the_rows_that_no_other_one_beats():
    rng = np.random.default_rng(0)
    points = [(float(cost), float(accuracy)) for cost, accuracy in rng.integers(1, 12, (40, 2))]
    found = pareto_front([*points, None])
    for place, (cost, accuracy) in enumerate(points):
        beaten = any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        assert (place in found) != beaten


def test_a_mean_curve_counts_each_round_with_the_runs_that_have_it():
    row = rows.rows_of([record(), record("seed=1", accuracies=(0.3, np.nan))])[0][0]
    curve, deviation = mean_curve([curve_of(run.rounds) for run in row.counted])
    assert curve.values == pytest.approx([0.4, 0.7, 0.8])
    assert deviation == pytest.approx([np.std([0.5, 0.3], ddof=1), 0, 0])
    assert curve.costs["rounds"].tolist() == [1, 2, 3]


@pytest.fixture
def columns():
    runs = [record("method.name=fedavg"), record("method.name=fedavg", "seed=1", accuracies=(0.6, 0.7, 0.72))]
    options = "method.options={exploration_epochs: 2}"
    table, _ = table_of(*runs, record("method.name=autoflip", options, scale=0.3), targets=(0.6, 0.75))
    return columns_of(table), table


def test_latex_has_booktabs_rules_and_as_many_cells_in_each_row(columns, tmp_path):
    latex = text.to_latex(columns[0], "50 % of a_b & more", ["how"], "tab:comparison")
    bodies = [part.partition(r"\bottomrule")[0] for part in latex.split(r"\toprule")[1:]]
    parts = parts_of(columns[0])
    assert sorted(column.heading for part in parts for column in part[1:]) == sorted(
        column.heading for column in columns[0][1:]
    )
    for body, part in zip(bodies, parts, strict=True):
        lines = [line for line in body.partition(r"\cmidrule")[2].splitlines() if line.endswith(r"\\")]
        assert len(lines) == 3
        assert {line.replace(r"\&", "").count("&") for line in lines} == {len(part) - 1}
    assert all(f"\\begin{{{name}}}" in latex and f"\\end{{{name}}}" in latex for name in ("table", "tabular"))
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    assert r"50 \% of a\_b \& more" in latex
    assert "\u00b1" not in latex
    assert latex.isascii()
    if program := shutil.which("pdflatex"):
        page = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{latex}\end{{document}}"
        (tmp_path / "page.tex").write_text(page, encoding="utf-8")
        subprocess.run([program, "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True)


def test_markdown_and_csv_say_what_the_table_says(columns):
    lines = text.to_markdown(columns[0], "title", ["how", "a note"]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count(" | ") for line in table} == {len(columns[0]) - 1}
    assert "- a note" in lines
    read = list(csv.DictReader(io.StringIO(text.to_csv(csv_lines(columns[1])))))
    assert [float(row["accuracy_mean"]) for row in read] == [row["accuracy"]["mean"] for row in columns[1]]
    assert read[1]["accuracy_std"] == ""
    assert float(read[0]["to_0.75_rounds_mean"]) == 3.0
    assert text.escaped("\\^~<") == r"\textbackslash{}\textasciicircum{}\textasciitilde{}\textless{}"


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_terminal_gets_all_columns_in_parts_that_fit(columns, width):
    console = Console(width=width, record=True, file=io.StringIO())
    parts = terminal.rich_tables(columns[0], [False, True], width)
    for part in parts:
        console.print(part)
    printed = console.export_text()
    assert (len(parts) == 1) == (width == 400)
    assert "\u2026" not in printed
    for column in columns[0][1:]:
        assert all(cell in printed for cell in column.cells if not column.is_text)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A comparison of two methods with two seeds, and a run by itself, in one store."""
    folder = tmp_path_factory.mktemp("compare")
    done = test_comparison.compared(folder, "--methods", "fedavg,heterofl")
    assert done.code == 0
    alone = folder / "alone"
    given = [
        part
        for override in (*TINY, "rounds=3", f"tracking.uri={done.uri}", "method.name=random", "experiment=apart")
        for part in ("--set", override)
    ]
    assert left_with("run", str(CONFIGS / "digits.yaml"), *given, "--output", str(alone)) == 0
    content = test_comparison.content_of(done)
    return SimpleNamespace(out=done.out, uri=done.uri, alone=alone, folder=folder, content=content)


def comparable(content: dict) -> list[dict]:
    """Rows of a comparison but for what the runs are called."""
    return [{name: value for name, value in row.items() if name != "runs"} for row in content["rows"]]


@pytest.mark.slow
def test_folder_parent_experiment_and_single_runs_are_the_same_comparison(made, capsys, tmp_path):
    client = MlflowClient(made.uri)
    children = [
        run.info.run_id
        for run in client.search_runs([made.content["experiment_id"]], order_by=["attributes.start_time ASC"])
        if "kind" not in run.data.tags
    ]
    experiment = client.get_experiment(made.content["experiment_id"]).name
    named = [str(made.out)], [made.content["run_id"]], [f"experiment:{experiment}"], children
    found = [comparable(compare.compare(names, made.uri).content()) for names in named]
    assert found[0] == found[1] == found[2] == found[3]
    by_label = {row["label"]: row for row in made.content["rows"]}
    assert [row["label"] for row in found[0]] == ["fedavg", "heterofl"]
    for row in found[0]:
        told = by_label[row["label"]]
        for ours, theirs in (
            ("accuracy", "accuracy"),
            ("best_accuracy", "best_accuracy"),
            ("simulated_s", "simulated_s"),
            ("pruning_ratio", "pruning_ratio_mean"),
        ):
            assert row[ours]["mean"] == pytest.approx(told[theirs]["mean"], rel=1e-12)
        assert row["megabytes"]["mean"] == pytest.approx(told["total_bytes"]["mean"] / 1e6)
    given = [str(made.out), str(made.alone), "--target", "0.3", "--target", "0.99", "--output", str(tmp_path / "out")]
    assert left_with("compare", *given, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in content["rows"]] == ["fedavg", "heterofl", "random"]
    assert content["targets"] == [0.3, 0.99]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(compare.FILES)
    curve = pq.read_table(made.alone / "rounds.parquet").to_pydict()
    assert content["rows"][2]["accuracy"]["mean"] == curve["accuracy"][-1]
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert page.count('class="figure"') == 5
    assert "heterofl" in page.partition("</table>")[0]


@pytest.mark.slow
def test_a_run_that_was_stopped_is_taken_with_the_rounds_it_has(made, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(made.alone, stopped)
    for name in ("summary.json", "rounds.parquet", "run.json"):
        (stopped / name).unlink()
    (stopped / "rounds" / "round_000003.parquet").unlink()
    compared = compare.compare([str(made.out), str(stopped)])
    row = next(row for row in compared.table if row["label"] == "random")
    assert (row["states"], row["rounds"]["mean"], row["is_whole"]) == (["unfinished"], 2.0, False)
    history = MlflowClient(made.uri).get_metric_history(
        json.loads((made.alone / "run.json").read_text(encoding="utf-8"))["run_id"], "accuracy/global"
    )
    assert row["accuracy"]["mean"] == history[1].value


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_is_read_from_its_metrics(made):
    run_id = json.loads((made.alone / "run.json").read_text(encoding="utf-8"))["run_id"]
    client = MlflowClient(made.uri)
    whole = comparable(compare.compare([str(made.out), run_id], made.uri).content())
    client.update_run(run_id, status="RUNNING")
    try:
        running = comparable(compare.compare([str(made.out), run_id], made.uri).content())
    finally:
        client.update_run(run_id, status="FINISHED")
    assert running[2]["states"] == ["running"]
    for name in ("accuracy", "megabytes", "simulated_s", "energy_j"):
        assert running[2][name]["mean"] == whole[2][name]["mean"]


@pytest.mark.slow
def test_a_run_that_was_interrupted_after_its_last_round_is_whole_by_its_id_too(made):
    run_id = json.loads((made.alone / "run.json").read_text(encoding="utf-8"))["run_id"]
    client = MlflowClient(made.uri)
    whole = comparable(compare.compare([str(made.alone)], made.uri).content())
    for status in ("KILLED", "FAILED"):
        client.update_run(run_id, status=status)
        try:
            assert comparable(compare.compare([run_id], made.uri).content()) == whole
        finally:
            client.update_run(run_id, status="FINISHED")


@pytest.mark.slow
def test_a_comparison_is_read_at_a_uri_and_its_runs_have_a_report_with_fedavgs_time(made, tmp_path):
    there = storage_path("mock:///copied")
    for path in made.out.rglob("*.*"):
        if path.is_file():
            place = functools.reduce(lambda place, part: place / part, path.relative_to(made.out).parts, there)
            place.write_bytes(path.read_bytes())
    ours, theirs = (comparable(compare.compare([str(each)]).content()) for each in (made.out, there))
    assert ours == theirs
    run = next(made.out.glob("runs/heterofl*"))
    run_id = json.loads((run / "summary.json").read_text(encoding="utf-8"))["run_id"]
    pages = [write.of_named(name, str(tmp_path / "page.html"), made.uri).read_text() for name in (str(run), run_id)]
    assert all("under the same clock mode, deadline, availability and batteries" in page for page in pages)
    assert all("has not finished" not in page for page in pages)


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_clear_message(made, tmp_path, capsys, monkeypatch):
    client = MlflowClient(made.uri)
    foreign = client.create_run(client.create_experiment("someone's"), run_name="foreign").info.run_id
    client.log_metric(foreign, "val_loss", 0.5)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((made.alone / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    lost, strange = tmp_path / "lost", tmp_path / "strange"
    shutil.copytree(made.alone, lost, ignore=shutil.ignore_patterns("rounds*"))
    shutil.copytree(bare, strange)
    with (strange / "config.yaml").open("a", encoding="utf-8") as config:
        config.write("rouds: 3\n")
    for names, message in (
        (["f" * 32], "RUN='ffffffffffffffffffffffffffffffff' is no folder, and no run in sqlite:"),
        ([foreign], f"RUN='{foreign}' has no metric in common with runs of raysim"),
        (["experiment:apartt"], "RUN='experiment:apartt' is no experiment in"),
        (["experiment:someone's"], 'RUN="experiment:someone\'s" has no runs of raysim'),
        (["apartt"], "RUN='apartt' is neither a folder, nor the id of a run, nor an experiment in"),
        ([str(tmp_path / "none")], "is neither a folder nor the id of a run in MLflow, nor an experiment there"),
        ([f"{made.alone}e"], f"nor an experiment there; nearest folder: {str(made.alone)!r}"),
        ([str(made.out)[:-1]], f"nor an experiment there; nearest folder: {str(made.out)!r}"),
        ([str(lost)], f"RUN={str(lost)!r} cannot be compared: rounds.parquet is missing"),
        ([str(strange)], f"RUN={str(strange)!r}: rouds=3 is not a setting"),
        ([str(made.folder / "store")], "holds no run: config.yaml is missing"),
        ([str(bare)], f"there is no metric to compare: no round has been scored in {bare}"),
        ([str(made.out), "--baseline", "fedvag"], "--baseline='fedvag' is no row; rows, nearest first: 'fedavg'"),
        ([str(made.out), "--target", "80"], "--target=80 is not in (0, 1]"),
    ):
        code = left_with("compare", *names, "--tracking-uri", made.uri, "--output", str(tmp_path / "out"))
        said = capsys.readouterr()
        assert code == signals.BAD_INPUT, names
        assert message in said.err
        assert said.err.count("\n") == 1
        assert not said.out
        assert not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    assert left_with("compare", "lostt", "--tracking-uri", f"sqlite:///{tmp_path}/none.db") == signals.BAD_INPUT
    said = capsys.readouterr().err
    assert "RUN='lostt' is no folder, and tracking.uri=" in said
    assert f"names no existing SQLite file; nearest folder: {str(lost)!r}" in said
    assert left_with("compare", str(made.alone), "--output", "/proc/1") == signals.BAD_INPUT
    assert "--output='/proc/1' cannot be written: " in capsys.readouterr().err
    assert left_with("compare", "f" * 32, "--tracking-uri", "http://127.0.0.1:9") == signals.BAD_INPUT
    assert "tracking.uri='http://127.0.0.1:9' cannot be read" in capsys.readouterr().err


def test_a_summary_tells_the_label_of_the_comparison_a_run_belongs_to():
    runs = [replace(record(f"seed={seed}"), label="mine") for seed in (0, 1)]
    grouped, _ = rows.rows_of([*runs, record("training.epochs=3")])
    assert [row.label for row in grouped] == ["mine", "ca-hfp, epochs 3"]


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    commands = [shlex.split(command)[1:] for command in re.findall(r"^```sh\n(.*)\n```$", page, re.MULTILINE)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(CONFIGS, tmp_path / "jobs" / "configs")
    smaller = [part for override in TINY[1:] for part in ("--set", override)]
    for command in commands:
        assert left_with(*command, *(smaller if command[0] == "run" else [])) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("fedavg", "ca-hfp", "to 60 %", "compare.html"))
    written = {path.name for path in (tmp_path / "runs" / "side-by-side").iterdir()}
    assert written == set(compare.FILES)
    assert all(f"`{name}`" in page for name in compare.FILES)
