"""`studies/peers`: its page is the one its results make, and nothing is compared that did not reach the same loss."""

import pytest

from raysim.core.storage import json_lines
from tests.conftest import ROOT
from tests.scripts import loaded

FOLDER = ROOT / "studies" / "peers"


def test_the_page_is_the_one_that_its_results_make():
    page = loaded(FOLDER / "page.py")
    lines = json_lines.read(FOLDER / "results.jsonl", dict)
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page.text(lines)
    assert {line["workload"] for line in lines} == {"W1", "W2"}
    assert all(len(line["commit"]) == 40 for line in lines), "of a checkout without changes"


def test_rates_are_of_the_median_round_without_the_first():
    page = loaded(FOLDER / "page.py")
    line = {"workload": "W1", "clients": 50, "rows": 50, "seconds": [9.0, 2.0, 1.0, 5.0]}
    assert page.rate(line) == 50 * 50 / 2.0
    assert page.rate({**line, "workload": "W2"}) == 50 / 2.0


def test_contestants_that_reach_another_loss_are_not_compared():
    run = loaded(FOLDER / "run.py")
    for loss in (1.0, 1.4, 0.6):
        run.check_loss("flower", 2.0, 1.0, loss, 0.5)
    with pytest.raises(SystemExit, match=r"flower reaches the loss 2\.00000, raysim 1\.00000 from 2\.00000"):
        run.check_loss("flower", 2.0, 1.0, 2.0, 0.5)
    for ours, loss in ((1.0, 0.0), (1.0, float("nan")), (2.0, 2.0)):
        with pytest.raises(SystemExit):
            run.check_loss("flower", 2.0, ours, loss, 0.5)


def test_every_contestants_work_is_read_as_it_was_written(tmp_path):
    run = loaded(FOLDER / "run.py")
    work = run.WORKS["W2"]
    content = run.write_work(
        run.Work("w2", (*work.overrides, "selection.clients_per_round=3"), 2, 20, 0.01), tmp_path / "w"
    )
    assert [len(cohort) for cohort in content["cohorts"]] == [3, 3]
    assert all(len(content["rows"][client][1]) == 20 for cohort in content["cohorts"] for client in cohort)
    shared = loaded(FOLDER / "contestants/shared.py")
    read = shared.Workload(tmp_path / "w")
    assert read.cohorts == content["cohorts"]
    start = run.loss_of(content, content["model"].state_dict())
    losses = [shared.train(read, read.model, client) for _ in range(5) for client in read.cohorts[0]]
    assert losses[-1] < losses[0]
    assert run.loss_of(content, read.model.state_dict()) < start
