"""Rounds end at the right time, and the right work counts; by hand, then in rounds that are run."""

import ast
import json
import re
from dataclasses import replace
from math import isfinite, nan
from typing import get_args

import numpy as np
import pytest
import torch

from raysim.clock import modes
from raysim.clock.modes import (
    ASYNC,
    DEADLINE,
    OVER_SELECTION,
    ClockRules,
    wait_for_all,
    wait_for_first,
    wait_until_deadline,
)
from raysim.clock.outcomes import COUNTED, DROPPED, LATE, SURPLUS, UNREACHABLE
from raysim.clock.work import Work, stopped
from raysim.config.clock import ClockSettings
from raysim.core import seeding, tensors
from raysim.data.batches import batch_slices
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.fjord import step_widths
from raysim.methods.table import METHODS
from raysim.population.profiles import OnlineIntervals
from raysim.simulation import checkpoint, planning, records
from raysim.simulation.build import build_scenario
from raysim.simulation.cohort import load_of, schedule_cohort, view_of
from raysim.simulation.forecast import forecast
from raysim.simulation.loop import save_round, stamped
from raysim.simulation.metrics import metrics_of
from raysim.simulation.participants import select_clients
from raysim.simulation.planning import PLANNERS, plan_cohort
from raysim.simulation.round import run_round
from raysim.simulation.scenario import Scenario
from raysim.simulation.state import Storage, summary_of
from raysim.simulation.transition import initial_state
from raysim.terminal.console import summary_lines
from tests.clocked import FRAIL, MODES, clocked, played, with_devices, with_figures, work_of
from tests.conftest import ROOT, settings_of


def lasting(*seconds: float, clients: list[int] | None = None) -> Work:
    return work_of([(0.0, second, 0.0) for second in seconds], clients)


def deadline(work: Work, deadline_s: float) -> tuple[list[str], list[float], float]:
    ended, round_s = wait_until_deadline(work, ClockRules(DEADLINE, deadline_s), 3)
    return ended.outcomes.tolist(), ended.duration_s.tolist(), round_s


def first(work: Work, wanted: int) -> tuple[list[str], list[float], float]:
    ended, round_s = wait_for_first(work, ClockRules(OVER_SELECTION), wanted)
    return ended.outcomes.tolist(), ended.duration_s.tolist(), round_s


def dropping(work: Work, *seconds: float) -> Work:
    return stopped(work, np.array(seconds), DROPPED)


def test_a_synchronous_round_lasts_until_the_slowest_is_done_or_has_stopped():
    work, round_s = wait_for_all(dropping(lasting(3, 9, 20), 1e9, 1e9, 12), ClockRules(), 3)
    assert (work.outcomes.tolist(), round_s) == ([COUNTED, COUNTED, DROPPED], 12.0)


def test_a_deadline_cuts_what_comes_later_and_equal_time_counts():
    assert deadline(lasting(3, 10, 10.001, 40), 10.0) == (
        [COUNTED, COUNTED, LATE, LATE],
        [3.0, 10.0, 10.0, 10.0],
        10.0,
    )


def test_a_round_ends_before_its_deadline_when_everybody_is_done():
    assert deadline(lasting(3, 7), 10.0) == ([COUNTED, COUNTED], [3.0, 7.0], 7.0)
    assert deadline(dropping(lasting(3, 40), 1e9, 5), 10.0) == ([COUNTED, DROPPED], [3.0, 5.0], 5.0)


def test_a_deadline_nobody_meets_loses_everybody():
    assert deadline(lasting(30, 40), 10.0) == ([LATE, LATE], [10.0, 10.0], 10.0)
    assert deadline(dropping(lasting(30, 40), 10.0, 11.0), 10.0)[0] == [DROPPED, LATE]


def test_over_selection_takes_the_first_by_time_then_by_id_and_stops_the_others():
    assert first(lasting(5, 3, 9, 4), 2) == (
        [SURPLUS, COUNTED, SURPLUS, COUNTED],
        [4.0, 3.0, 4.0, 4.0],
        4.0,
    )
    assert first(lasting(5, 5, 5, clients=[7, 8, 9]), 2) == ([COUNTED, COUNTED, SURPLUS], [5.0] * 3, 5.0)
    assert first(lasting(6, 5, 5, clients=[7, 8, 9]), 1) == ([SURPLUS, COUNTED, SURPLUS], [5.0] * 3, 5.0)


def test_over_selection_passes_over_those_that_have_dropped_out():
    work = dropping(lasting(2, 3, 4, 5), 1.0, 1e9, 1e9, 4.5)
    assert first(work, 2) == ([DROPPED, COUNTED, COUNTED, SURPLUS], [1.0, 3.0, 4.0, 4.0], 4.0)


def test_with_fewer_survivors_than_wanted_the_round_lasts_until_all_have_stopped():
    work = dropping(lasting(2, 3, 4), 1.0, 1e9, 3.5)
    assert first(work, 2) == ([DROPPED, COUNTED, DROPPED], [1.0, 3.0, 3.5], 3.5)
    assert first(dropping(lasting(2, 3), 1.0, 2.0), 1) == ([DROPPED, DROPPED], [1.0, 2.0], 2.0)


@pytest.mark.parametrize(("wanted", "factor", "asked"), [(3, 1.3, 4), (10, 1.3, 13), (10, 1.1, 11), (5, 1.0, 5),
                                                         (50, 1.3, 60)])  # fmt: skip
def test_so_many_are_asked(monkeypatch, wanted, factor, asked):
    sizes = []
    scenario = build_scenario(settings_of("fedavg", "population.clients=60", "data.max_train_examples=400"))
    rules = ClockRules(OVER_SELECTION, over_selection=factor)
    ask = select_clients
    monkeypatch.setattr(
        planning, "select_clients", lambda scenario, state, size: sizes.append(size) or ask(scenario, state, size)
    )
    plan_cohort(replace(scenario, cohort_size=wanted, clock=rules), initial_state(scenario))
    assert sizes == [asked]


@pytest.mark.parametrize("mode", ["sync", "deadline", "over-selection"])
def test_the_servers_seconds_are_added_to_every_round(mode):
    scenario = clocked("magnitude", mode)
    quick = replace(scenario, clock=replace(scenario.clock, server_s=0.0))
    slow = replace(scenario, clock=replace(scenario.clock, server_s=2.5))
    plans = [plan_cohort(each, initial_state(each)) for each in (quick, slow)]
    assert plans[1].round_s == pytest.approx(plans[0].round_s + 2.5, rel=1e-12)
    np.testing.assert_array_equal(plans[0].ended[0].outcomes, plans[1].ended[0].outcomes)


EPOCHS = ("training.epochs=5", "selection.clients_per_round=6")


@pytest.mark.parametrize(
    ("method", "deadline_s"), [("magnitude", 1.5), ("dapperfl", 2.0), ("fjord", 1.2), ("fedprox", 2.0)]
)
def test_late_clients_send_the_epochs_that_fit(method, deadline_s):
    """As many as fit and not one more; a method that needs two keeps two, and may be late with them."""
    scenario = clocked(method, "partial", *EPOCHS)
    scenario = replace(scenario, clock=replace(scenario.clock, deadline_s=deadline_s))
    whole = replace(scenario, clock=replace(scenario.clock, accept_partial=False))
    few, all_of_them = (plan_cohort(each, initial_state(each)).ended[0] for each in (scenario, whole))
    fewest = scenario.method.min_epochs
    assert fewest == (2 if method == "dapperfl" else 1)
    fewer = few.cohort.epochs < all_of_them.cohort.epochs
    assert fewer.any()
    assert not fewer.all()
    for place in range(len(few)):
        epochs, seconds = few.cohort.epochs[place], few.timing.total_s[place]
        assert epochs >= fewest
        assert seconds <= deadline_s or epochs == fewest
        assert (few.outcomes[place] == LATE) == (seconds > deadline_s)
        if fewer[place]:
            cohort = replace(few.cohort, epochs=few.cohort.epochs + (np.arange(len(few)) == place))
            view = view_of(scenario, initial_state(scenario), cohort)
            load = load_of(scenario, view, few.masks)
            assert schedule_cohort(scenario, cohort, load).total_s[place] > deadline_s, "one more is late"
    assert (all_of_them.outcomes == LATE).sum() > (few.outcomes == LATE).sum()
    assert few.load.steps.sum() < all_of_them.load.steps.sum()


def test_partial_work_is_trained_counted_and_paid_for_epoch_by_epoch():
    _, (report,) = played(clocked("magnitude", "partial", *EPOCHS, "clock.deadline_s=1.5"), 1)
    rows = report.clients
    counted = rows["fate"] == COUNTED
    assert 1 <= rows["planned_epochs"].min() < rows["planned_epochs"].max() == 5
    np.testing.assert_array_equal(rows["epochs"], np.where(counted, rows["planned_epochs"], 0))
    batches = [len(batch_slices(int(n), 16)) for n in rows["examples"]]
    np.testing.assert_array_equal(rows["planned_steps"], rows["planned_epochs"] * batches)
    np.testing.assert_array_equal(rows["steps"][counted], rows["planned_steps"][counted])


def test_fewer_epochs_never_draw_a_wider_step_than_the_mask_was_cut_for():
    """FjORD cuts for the widest of all epochs' steps; those of fewer epochs are the first of them."""
    for client in range(300):
        long = step_widths(3, 2, client, 60, 1.0)
        for steps in (1, 7, 12, 30, 59):
            np.testing.assert_array_equal(step_widths(3, 2, client, steps, 1.0), long[:steps])


def offline_until(scenario: Scenario, second: float) -> Scenario:
    """Everybody comes online at a second, and stays."""
    population = scenario.workload.population
    count = len(population.devices.tier_of_device)
    online = OnlineIntervals(np.arange(count + 1), np.full(count, second), np.full(count, 1e6), np.full(count, 1e6))
    return with_devices(scenario, replace(population.devices, online=online))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_round_passes_time_and_is_counted_and_changes_nothing_else(mode, tmp_path):
    scenario = offline_until(clocked("ca-hfp", mode, "server.optimizer=momentum", "method.warmup_rounds=1"), 1.0)
    before = initial_state(scenario)
    state, report = run_round(scenario, before, InProcessExecutor(scenario.workload))
    waited = {"deadline": 0.8, "partial": 0.8}.get(mode, 60.0) + scenario.clock.server_s
    assert report.round_s == state.totals.simulated_s == waited
    assert tensors.digest(state.params) == tensors.digest(before.params)
    assert state.memory == before.memory == {}
    assert (state.round, state.totals.empty_rounds) == (1, 1)
    assert state.totals.outcomes == {UNREACHABLE: len(report.clients["client"])}
    assert state.totals.down_bytes == state.totals.train_flops == state.totals.energy_j == 0
    assert report.score is not None
    assert (report.coverage.mean, report.coverage.untrained_share) == (0.0, 1.0)
    assert all(isfinite(value) for value in metrics_of(report).values())
    assert "loss/train" not in metrics_of(report)
    save_round(state, stamped(report, 0.0, is_saved=True), Storage(tmp_path, 1, 1))
    assert checkpoint.load(checkpoint.path_of(tmp_path / "checkpoints", 1)).totals == state.totals

    later = state
    for _ in range(2):
        later, report = run_round(scenario, later, InProcessExecutor(scenario.workload))
        save_round(later, stamped(report, 0.0, is_saved=True), Storage(tmp_path, 1, 1))
    assert later.totals.empty_rounds == (2 if mode in ("deadline", "partial") else 1)
    assert tensors.digest(later.params) != tensors.digest(state.params)
    for name, rows in (("rounds", 3), ("clients", sum(later.totals.outcomes.values()))):
        merged = records.merge_parts(tmp_path / name, tmp_path / f"{name}.parquet")
        assert records.pq.read_table(merged).num_rows == rows


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_method_minds_an_empty_first_round(method):
    now = ("method.warmup_rounds=0",) if "warmup_rounds" in METHODS[method].reads else ()
    scenario = clocked(method, "sync", *now)
    away = offline_until(scenario, played(scenario, 1)[1][0].totals.preparation_s + 30.0)
    _, reports = played(away, 3)
    assert [bool((report.clients["fate"] == COUNTED).any()) for report in reports] == [False, True, True]
    assert reports[-1].totals.empty_rounds == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_run_in_which_everybody_drops_out_ends_with_the_model_it_began_with(mode, tmp_path):
    scenario = with_figures(clocked("magnitude", mode), failure_rate=1.0)
    state, reports = played(scenario)
    assert tensors.digest(state.params) == tensors.digest(initial_state(scenario).params)
    assert state.totals.empty_rounds == len(reports) == 4
    assert state.totals.outcomes[DROPPED] > 4
    assert all(report.round_s > 0 for report in reports)
    assert state.totals.down_bytes > 0, "what has been moved in vain is paid for"
    assert state.totals.client_rounds == 0
    summary = summary_of(state.totals)
    json.dumps(summary, allow_nan=False)
    shown = summary | {
        "method": "m",
        "rounds": 4,
        "output_dir": "",
        "accuracy": 0.1,
        "best_accuracy": 0.1,
        "targets": [],
        "wall_s": 1.0,
        "costs": {},
    }
    assert any("work that did not count" in line for line in summary_lines(shown, "", ""))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_books_balance(mode):
    """Fates add up to rows, seconds and joules to the totals; nobody spends more than was planned."""
    state, reports = played(clocked("magnitude", mode, *FRAIL, "rounds=6"))
    rows = {name: np.concatenate([report.clients[name] for report in reports]) for name in reports[0].clients}
    totals = state.totals
    assert dict(zip(*np.unique(rows["fate"], return_counts=True), strict=True)) == totals.outcomes
    assert len(totals.outcomes) >= 3, "a law about fates needs some"
    assert totals.client_rounds == totals.outcomes[COUNTED]
    assert totals.simulated_s == pytest.approx(sum(report.round_s for report in reports), rel=1e-12)
    assert totals.energy_j == pytest.approx(rows["energy_j"].sum(), rel=1e-12)
    for name in ("down_bytes", "up_bytes", "train_flops"):
        assert getattr(totals, name) == rows[name].sum()
        assert (rows[name] <= rows[f"planned_{name}"]).all()
        assert (rows[name] == rows[f"planned_{name}"])[rows["fate"] == COUNTED].all()
        assert (rows[name] < rows[f"planned_{name}"]).any()
    assert (rows["steps"] <= rows["planned_steps"]).all()
    assert (rows["theoretical_train_flops"] <= rows["train_flops"]).all()
    assert (rows["lasts_s"] <= rows["total_s"]).all()
    assert (rows["energy_j"] <= 3.0).all()
    assert len({(r, c) for r, c in zip(rows["started_round"], rows["client"], strict=True)}) == len(rows["client"])
    assert totals.empty_rounds == sum(not (report.clients["fate"] == COUNTED).any() for report in reports)
    for report in reports:
        assert not any(value != value for value in metrics_of(report).values()), nan


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["magnitude", "fjord", "dapperfl", "ca-hfp+"])
def test_the_forecast_is_what_a_run_spends_in_every_mode(mode, method):
    scenario = clocked(method, mode, *FRAIL)
    predicted, (state, reports) = forecast(scenario), played(scenario)
    assert predicted["exact"]
    assert predicted["rounds"] == len(reports)
    assert {name: predicted[name] for name in summary_of(state.totals)} == summary_of(state.totals)


def test_the_point_at_which_clients_drop_out_is_in_their_seconds():
    scenario = with_figures(clocked("magnitude", "sync", "selection.clients_per_round=6"), failure_rate=1.0)
    _, (report,) = played(scenario, 1)
    point = seeding.uniform(scenario.workload.seed, "dropout", 1, np.arange(6), 2)[1]
    np.testing.assert_allclose(report.clients["lasts_s"], point * report.clients["total_s"], rtol=1e-12)
    assert report.round_s == report.clients["lasts_s"].max()
    assert all(torch.isfinite(value).all() for value in played(scenario, 1)[0].params.values())


@pytest.mark.slow
def test_modes_are_compared_by_name_in_the_settings_only() -> None:
    """What differs between clock modes is data of `ClockMode`; only range checks of settings look at names."""

    def compares_a_mode(node: ast.AST) -> bool:
        if not isinstance(node, ast.Compare | ast.Match):
            return False
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node]
        parts = [part for side in sides for part in ast.walk(side)]
        named = any(isinstance(part, ast.Constant) and part.value in modes.MODES for part in parts)
        by_name = any(ast.unparse(part).endswith("mode.name") for part in parts if isinstance(part, ast.Attribute))
        return by_name or (named and "mode" in re.findall(r"\w+", ast.unparse(node)))

    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "raysim").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if compares_a_mode(node)
    }
    assert {place for place in found if not place.startswith("raysim/config/")} == set()
    assert any(place.startswith("raysim/config/") for place in found), "the search finds none any more"


def test_every_mode_has_a_planner_and_the_settings_accept_it() -> None:
    assert set(PLANNERS) == set(modes.MODES) == set(get_args(ClockSettings.model_fields["mode"].annotation))


def test_a_mode_without_a_common_start_has_no_common_end() -> None:
    with pytest.raises(ValueError, match="'async' do not start together"):
        ASYNC.end(lasting(1, 2), ClockRules(ASYNC), 2)
