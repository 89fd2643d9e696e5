"""`jobs/time_to_accuracy.py` as a user types it, and the points of its curves."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from matplotlib import image

from raysim.analysis.comparison import curves
from raysim.analysis.comparison.curves import Curve
from raysim.config import loader
from tests.commands import left_with
from tests.conftest import CONFIGS, ROOT, TINY
from tests.scripts import loaded
from tests.stores import store_in

JOB = loaded(ROOT / "jobs" / "time_to_accuracy.py")

COMPARISON = {
    "base": str(CONFIGS / "digits.yaml"),
    "set": dict(loader.parse_override(override) for override in TINY) | {"rounds": 3},
    "methods": ["fedavg", "heterofl"],
    "seeds": [0],
}
MODES = {
    "sync": {"clock.mode": "sync", "clock.deadline_s": None},
    "async": {"clock.mode": "async", "clock.buffer_size": 2, "clock.concurrency": 3},
}


def code_of(folder, *options) -> int:
    (folder / "comparison.yaml").write_text(yaml.safe_dump(COMPARISON), encoding="utf-8")
    asked = {"comparison": "comparison.yaml", "target": 0.05, "modes": MODES}
    (folder / "modes.yaml").write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    store = ("--set", f"tracking.uri={store_in(folder / 'store')}")
    given = (folder / "modes.yaml", *store, "--output", folder / "out", *options)
    return left_with(*given, command=JOB.time_to_accuracy, kept=JOB.KEPT)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("time-to-accuracy")
    return SimpleNamespace(code=code_of(folder), folder=folder, out=folder / "out")


@pytest.mark.long
def test_every_mode_and_method_has_a_row_with_what_its_records_say(drawn):
    assert drawn.code == 0
    rows = (drawn.out / "time_to_accuracy.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {mode}", method] for mode in MODES for method in ("fedavg", "heterofl")
    ]
    curve = curves.read(drawn.out / "async" / "runs" / "fedavg-seed0" / "rounds.parquet")
    assert len(curve.values) == 3
    assert all((np.diff(cost) >= 0).all() and cost[0] > 0 for name, cost in curve.costs.items() if name != "energy_j")
    told = [f"{curve.cost_of(0.05)[name]:,.0f}" for name in curves.COSTS]
    assert rows[2].split(" | ")[2:5] == told


@pytest.mark.slow
def test_the_figure_is_drawn_again_from_what_is_there(drawn):
    picture = drawn.out / "time_to_accuracy.png"
    before = image.imread(picture)
    picture.unlink()
    assert code_of(drawn.folder, "--draw-only") == 0
    assert np.array_equal(image.imread(picture), before)
    assert before.std() > 0.05


def test_drawing_only_what_is_not_there_is_bad_input(tmp_path, capsys):
    assert code_of(tmp_path, "--draw-only") == 2
    assert "does not hold sync/runs/fedavg-seed0/rounds.parquet" in capsys.readouterr().err


def test_a_target_costs_what_had_been_spent_when_it_was_first_reached():
    curve = Curve(np.array([0.2, 0.6, 0.5, 0.7]), {"simulated_s": np.array([1.0, 2.0, 3.0, 4.0])})
    assert [curve.cost_of(target)["simulated_s"] for target in (0.1, 0.6, 0.65, 0.9)] == [1.0, 2.0, 4.0, None]
