"""A finished run that an earlier version wrote is still reported, compared and replayed, or refused in one line.

The run in `tests/resources/earlier_run` is of the version before FedAvg had a clock of its own: two rounds of
HeteroFL on digits, six clients. It is written by that version's own program, without the report and the checkpoints.
"""

import json
import shutil
from pathlib import Path

import pytest

import raysim
from tests.commands import left_with
from tests.conftest import ROOT

EARLIER = ROOT / "tests" / "resources" / "earlier_run"
OTHER = (
    "tiers:\n  - {name: fast, share: 1.0, flops_per_s: 1.0e+9, down_bytes_per_s: 1.0e+7, up_bytes_per_s: 1.0e+7}\n"
)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def done(capsys, *arguments: object) -> str:
    capsys.readouterr()
    code = left_with(*arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return str(captured.out)


def test_it_is_of_an_earlier_version(earlier):
    run = raysim.load(str(earlier))
    assert "fedavg" not in run.summary
    assert run.examples is None
    assert run.state == "finished"


def test_its_report_has_its_figures_and_says_why_fedavg_is_not_compared(earlier, capsys, tmp_path):
    done(capsys, "report", earlier, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    summary = json.loads((earlier / "summary.json").read_text())
    assert f"{100 * summary['accuracy']:.2f} %" in page
    assert "the records come from a version that compared runs with another FedAvg" in page
    assert f"{summary['bytes_percent_of_fedavg']:.1f} %" not in page


def test_it_is_compared_with_other_runs(earlier, capsys, tmp_path):
    content = json.loads(done(capsys, "compare", earlier, "--json", "--output", tmp_path / "out"))
    (row,) = content["rows"]
    assert (row["label"], row["leading"], row["accuracy"]["mean"]) == ("heterofl", "accuracy", 0.2)
    assert content["targets"] == [0.19]


@pytest.mark.parametrize("options", [(), ("--deadline", 0.02), ("--devices",)])
def test_it_is_replayed_without_fedavg(earlier, capsys, tmp_path, options):
    (tmp_path / "other.yaml").write_text(OTHER, encoding="utf-8")
    given = (*options, tmp_path / "other.yaml") if options == ("--devices",) else options
    replayed = json.loads(done(capsys, "replay", earlier, *given, "--json"))
    assert replayed["fedavg"] is None
    assert "do not have the training rows of every client" in replayed["why_no_fedavg"]
    assert replayed["recorded"]["bytes_percent_of_fedavg"] is None
    assert replayed["rounds"] == 2
    assert replayed["simulated_s"] > 0
    printed = done(capsys, "replay", earlier, *given)
    assert "not compared with FedAvg: the records" in printed
