"""A run timed anew from its records: on its own devices equal to the bit, on others as far as records determine."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from raysim.analysis.replay import finished_run, other_devices, summary
from raysim.analysis.replay import run as replays
from raysim.analysis.replay.summary import in_short
from raysim.config import loader
from raysim.config.population import PopulationSettings
from raysim.core.storage.local import storage_path
from raysim.executors import in_process
from raysim.experiment.experiment import Experiment
from raysim.experiment.finish import summarise
from raysim.experiment.start import write_scenario
from raysim.population import sampling, sources
from raysim.population.profiles import DeviceProfile, OnlineIntervals
from raysim.simulation import records
from raysim.simulation.build import build_scenario
from raysim.simulation.state import Storage
from tests.conftest import settings_of

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
ON_BATTERIES = tuple(tier | {"battery_j": 2.5, "charge_watts": 0.05, "failure_rate": 0.1} for tier in TIERS)
ONLINE_AT_TIMES = tuple(tier | {"availability": 0.6, "availability_swing": 0.3} for tier in TIERS)
ASYNC = ("clock.mode=async", "clock.buffer_size=3", "clock.concurrency=4")
DEADLINE = ("clock.mode=deadline", "clock.deadline_s=1")
PARTIAL = (*DEADLINE, "clock.accept_partial=true", "training.epochs=3")
OVER = ("clock.mode=over-selection", "clock.over_selection=1.5")
BUSY = ("clock.server_s=0.7",)


def run_into(folder: Path, *overrides: str, tiers=TIERS, method: str = "random", rounds: int = 4) -> Path:
    """Run a tiny experiment and leave what a replay reads, without MLflow, which takes longer than the run."""
    settings = settings_of(
        method,
        f"population.tiers={json.dumps(list(tiers))}",
        "population.clients=8",
        f"rounds={rounds}",
        "evaluation.targets=[0.05, 0.1, 0.99]",
        "costs.price_per_kwh=0.3",
        "experiment=replay",
        *overrides,
    )
    folder.mkdir()
    scenario = build_scenario(settings)
    runner = in_process.InProcessRunner()
    list(runner.run(scenario, Storage(folder, rounds, 1)))
    of_run = Experiment(settings, storage_path(folder), scenario, tracker=None)
    content = summarise(of_run, runner.final_state(), wall_s=1.0)
    (folder / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    write_scenario(scenario, storage_path(folder))
    (folder / "config.yaml").write_text(loader.to_yaml(settings), encoding="utf-8")
    for name in ("rounds", "clients"):
        records.merge_parts(folder / name, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs a tiny experiment once for each set of settings; returns its folder."""
    folders: dict[str, Path] = {}
    base = tmp_path_factory.mktemp("replay")

    def run(*overrides: str, **given) -> Path:
        key = repr((overrides, given))
        if key not in folders:
            folders[key] = run_into(base / f"run{len(folders)}", *overrides, **given)
        return folders[key]

    return run


def replayed(folder: Path, tiers=None, deadline_s=None):
    recorded = finished_run.read(str(folder))
    return replays.replay(recorded, None if tiers is None else dealt(recorded, tiers=list(tiers)), deadline_s)


def dealt(recorded, **given):
    settings = PopulationSettings(clients=8, **given)
    return sources.of_settings(settings, recorded.settings.split_seed)


SURE, FAIL, BATTERY, AT_TIMES = (
    pytest.param(tiers, id=name)
    for tiers, name in (
        (TIERS, "sure"),
        (FAILING, "failing"),
        (ON_BATTERIES, "batteries"),
        (ONLINE_AT_TIMES, "at times"),
    )
)
TOGETHER = (
    pytest.param((), id="sync"),
    pytest.param(DEADLINE, id="deadline"),
    pytest.param(PARTIAL, id="partial"),
    pytest.param(OVER, id="over-selection"),
)


@pytest.mark.slow
@pytest.mark.parametrize("tiers", [SURE, FAIL, BATTERY, AT_TIMES])
@pytest.mark.parametrize("mode", [*TOGETHER, pytest.param(ASYNC, id="async")])
def test_on_its_own_devices_a_run_is_reproduced_to_the_bit(ran, mode, tiers):
    assert_reproduced(ran(*mode, *BUSY, tiers=tiers))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "fedprox",
        "fjord",
        "fedmp",
        "dapperfl",
        "scaffold",
        "prunefl",
        "feddst",
        "fedtiny",
        "fedrts",
        "autoflip",
        "ca-hfp",
    ],
)
def test_every_kind_of_method_is_reproduced_its_preparation_too(ran, method):
    assert_reproduced(ran(method=method, tiers=FAILING))


@pytest.mark.parametrize("mode", [(), ASYNC], ids=["sync", "async"])
def test_downloads_without_what_clients_hold_are_reproduced(ran, mode):
    model = "model={name: 'tests.networks:adapted', options: {}}"
    folder = ran(*mode, model, method="heterofl", tiers=FAILING, rounds=6)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["down_bytes"] > summary["up_bytes"]
    assert summary["full_model"]["frozen_bytes"] > 0
    assert_reproduced(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["simulated_s=3", "bytes=60000", "energy_j=15", "accuracy=0.06"])
@pytest.mark.parametrize("mode", [(), ASYNC], ids=["sync", "async"])
def test_a_run_that_a_rule_has_stopped_is_reproduced(ran, mode, rule):
    folder = ran(*mode, f"stop.{rule}", rounds=8, tiers=FAILING)
    assert 1 <= json.loads((folder / "summary.json").read_text())["rounds"] < 8
    assert_reproduced(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), DEADLINE, ASYNC], ids=["sync", "deadline", "async"])
def test_rounds_of_nobody_are_reproduced(ran, mode):
    dead = tuple(tier | {"battery_j": 0.4} for tier in TIERS)
    folder = ran(*mode, tiers=dead, rounds=6)
    assert json.loads((folder / "summary.json").read_text())["empty_rounds"] > 0
    assert_reproduced(folder)


def test_the_runs_above_have_lost_work_of_every_kind(ran):
    def outcomes(*overrides: str, tiers=TIERS) -> set[str]:
        return set(finished_run.read(str(ran(*overrides, tiers=tiers))).clients["fate"])

    assert "late" in outcomes(*DEADLINE, *BUSY)
    assert "surplus" in outcomes(*OVER, *BUSY)
    assert "unfinished" in outcomes(*ASYNC, *BUSY)
    assert "dropped" in outcomes(*BUSY, tiers=FAILING)
    assert "battery" in outcomes(*BUSY, tiers=ON_BATTERIES)
    assert "unreachable" in outcomes(*BUSY, tiers=ONLINE_AT_TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("buffer_size", "concurrency"), [(1, 8), (6, 2), (5, 1), (4, 5)])
def test_places_that_stayed_free_stay_free(ran, buffer_size, concurrency, seed):
    size = (f"clock.buffer_size={buffer_size}", f"clock.concurrency={concurrency}", f"seed={seed}")
    failing = tuple(tier | {"failure_rate": 0.7} for tier in TIERS)
    assert_reproduced(ran("clock.mode=async", *size, "clock.server_s=3", tiers=failing, rounds=6))


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


def faster(tiers, factor: float = 2.0):
    speeds = ("flops_per_s", "down_bytes_per_s", "up_bytes_per_s", "memory_bytes_per_s")
    waits = ("latency_s", "step_overhead_s")
    return tuple(
        tier
        | {name: tier[name] * factor for name in speeds if name in tier}
        | {name: tier[name] / factor for name in waits if name in tier}
        for tier in tiers
    )


def assert_equal_clocks(replay, folder: Path) -> None:
    """The replay tells what a run under those conditions does; costs of `random` do not depend on what is learned."""
    real = finished_run.read(str(folder))
    table = {
        name: np.concatenate([each.clients[name] for each in replay.rounds])
        for name in ("client", "fate", "energy_j", "lasts_s", "train_flops")
    }
    for name, column in table.items():
        np.testing.assert_array_equal(column, real.clients[name], err_msg=name)
    assert [each.round_s for each in replay.rounds] == real.rounds["round_s"].tolist()
    assert summary.summary_from(replay)["fedavg"] == real.summary["fedavg"]


@pytest.mark.slow
@pytest.mark.parametrize("tiers", [SURE, FAIL, BATTERY])
@pytest.mark.parametrize("mode", TOGETHER)
def test_on_other_devices_it_takes_as_long_as_a_run_on_them(ran, mode, tiers):
    replay = replayed(ran(*mode, *BUSY, tiers=tiers), faster(tiers, 1.3))
    if not any(each.answers for each in replay.rounds):
        assert_equal_clocks(replay, ran(*mode, *BUSY, tiers=faster(tiers, 1.3)))


@pytest.mark.slow
@pytest.mark.parametrize("deadline_s", [0.6, 0.9, 1.2, 100.0])
@pytest.mark.parametrize("mode", [(), DEADLINE, PARTIAL], ids=["sync", "deadline", "partial"])
def test_with_another_deadline_it_takes_as_long_as_a_run_with_it(ran, mode, deadline_s):
    replay = replayed(ran(*mode, *BUSY), deadline_s=deadline_s)
    with_it = tuple(part for part in mode if "deadline" not in part)
    assert_equal_clocks(replay, ran("clock.mode=deadline", f"clock.deadline_s={deadline_s}", *with_it, *BUSY))


@pytest.mark.slow
def test_where_everything_is_twice_as_fast_asynchronous_clients_come_in_the_same_order(ran):
    """Every second is halved exactly, and so no event passes another."""
    replay = replayed(ran(*ASYNC), faster(TIERS, 2.0))
    assert_equal_clocks(replay, ran(*ASYNC, tiers=faster(TIERS, 2.0)))
    assert replay.flagged_rounds == []
    assert [each.round_s * 2 for each in replay.rounds] == replay.recorded.rounds["round_s"].tolist()
    reasons = [each.reason for each in replay.unknown]
    assert len(reasons) == 1
    assert reasons[0].startswith("clients start in the recorded order")


@pytest.mark.slow
@pytest.mark.parametrize("factor", [8.0, 0.5])
def test_asynchronous_clients_that_were_absent_are_asked_within_the_round(ran, factor):
    """Work of minutes, so that some go offline in the middle of a round."""
    slow = {"availability": 0.3, "failure_rate": 0.2, "flops_per_s": 2e4}
    tiers = tuple(tier | slow for tier in TIERS)
    size = ("clock.mode=async", "clock.buffer_size=6", "clock.concurrency=2")
    replay = replayed(ran(*size, tiers=tiers), faster(tiers, factor))
    began_s, absent = 0.0, 0
    for each in replay.rounds:
        selected_s = each.clients["start_s"][each.clients["fate"] == "unreachable"]
        assert (began_s <= selected_s).all()
        assert (selected_s <= each.totals.simulated_s).all()
        began_s, absent = each.totals.simulated_s, absent + len(selected_s)
    assert absent


@pytest.mark.slow
def test_twice_the_flops_per_second_halve_the_training_and_nothing_else(ran):
    plain = tuple(
        {name: tier[name] for name in tier if name not in ("step_overhead_s", "memory_bytes_per_s")} for tier in TIERS
    )
    quick = tuple(tier | {"flops_per_s": 2 * tier["flops_per_s"]} for tier in plain)
    replay = replayed(ran(tiers=plain), quick)
    then, now = replay.recorded.clients, replay.rounds[0].clients
    here = then["round"] == 1
    assert (2 * now["compute_s"]).tolist() == then["compute_s"][here].tolist()
    for name in ("download_s", "upload_s", "train_flops", "up_bytes"):
        assert now[name].tolist() == then[name][here].tolist()
    total_s = then["download_s"][here] + then["compute_s"][here] / 2 + then["upload_s"][here]
    assert replay.rounds[0].round_s == total_s.max()
    told = summary.summary_from(replay)
    assert told["exact"]
    assert told["accuracy"] == replay.recorded.summary["accuracy"]
    assert told["targets"][0]["simulated_s"] < replay.recorded.summary["targets"][0]["simulated_s"]
    assert told["targets"][0]["round"] == replay.recorded.summary["targets"][0]["round"]


def test_devices_are_the_same_by_what_they_can_do_and_when():
    def traced(*ends: float, **given):
        online = OnlineIntervals(np.array([0, 1, 2]), np.zeros(2), np.array(ends), np.full(2, 10.0))
        return dataclasses.replace(sampling.listed([DeviceProfile("a", 1, 2, 3)] * 2), online=online, **given)

    plain = sampling.listed([DeviceProfile("a", 1, 2, 3)] * 2)
    assert other_devices.are_same(
        plain, sampling.listed([DeviceProfile("b", 1, 2, 3)], device_of=np.zeros(2, np.int64))
    )
    assert not other_devices.are_same(plain, sampling.listed([DeviceProfile("a", 1, 2, 4)] * 2))
    assert not other_devices.are_same(plain, traced(5, 6))
    assert other_devices.are_same(traced(5, 6), traced(5, 6, trace_of=np.array([0, 1])))
    assert not other_devices.are_same(traced(5, 6), traced(5, 6, trace_of=np.array([0, 0])))
    assert not other_devices.are_same(traced(5, 6), traced(5, 7))


def narrower(tiers=TIERS):
    return (tiers[0] | {"keep_ratio": 0.25}, tiers[1])


@pytest.mark.slow
def test_who_would_have_trained_another_submodel_is_flagged_and_timed_with_the_one_it_trained(ran):
    replay = replayed(ran(), narrower())
    clients = replay.recorded.clients
    slow = clients["tier"] == "slow"
    told = summary.summary_from(replay)
    assert told["flagged_client_rounds"] == slow.sum() > 0
    assert told["simulated_s"] == replay.recorded.summary["simulated_s"]
    assert not told["exact"]
    first = clients["round"][slow].min()
    (submodels, accuracy) = told["unknown"]
    assert submodels["reason"].startswith("their devices' keep_ratio differs")
    assert submodels["client_rounds"] == slow.sum()
    assert submodels["rounds"] == len(np.unique(clients["round"][slow]))
    assert accuracy == {
        "reason": f"accuracy from round {first} on: another model would have been learned",
        "rounds": 5 - first,
        "client_rounds": 0,
    }
    assert told["accuracy"] is told["best_accuracy"] is None
    lost = told["targets"][-1]
    assert (lost["round"], lost["known"]) == (None, False)


@pytest.mark.slow
def test_whose_width_does_not_depend_on_the_device_has_the_same_submodel(ran):
    told = summary.summary_from(replayed(ran(method="fedavg"), narrower()))
    assert told["exact"]
    assert told["flagged_client_rounds"] == 0


def test_a_width_drawn_from_another_budget_is_not_known(ran):
    folder = ran(method="fjord", tiers=FAILING)
    same_level = (FAILING[0] | {"keep_ratio": 0.55}, FAILING[1])  # FjORD's widest width is 0.4 either way
    assert replayed(folder, same_level).unknown == []
    replay = replayed(folder, narrower(FAILING))
    assert replay.changed.sum() == (replay.recorded.clients["tier"] == "slow").sum()


SOLVED = ("budget={rule: solved, deadline_s: 0.6}",)


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "value"), [("flops_per_s", 3e4), ("up_bytes_per_s", 3e4), ("memory_bytes", 1e4)])
def test_solved_budgets_are_solved_again_and_tell_who_would_have_trained_what(ran, figure, value):
    widest = tuple(tier | {"keep_ratio": 1.0} for tier in TIERS)
    others = (widest[0] | {figure: value}, widest[1])
    replay = replayed(ran(*SOLVED, tiers=widest), others)
    real = finished_run.read(str(ran(*SOLVED, tiers=others))).clients
    recorded = replay.recorded.clients
    assert recorded["client"].tolist() == real["client"].tolist()
    assert replay.changed.tolist() == (recorded["keep_ratio"] != real["keep_ratio"]).tolist()
    assert replay.changed.any()
    assert not replay.changed.all()
    assert any(each.reason.startswith("solved for their devices, their budgets differ") for each in replay.unknown)


@pytest.mark.slow
def test_what_budgets_do_not_depend_on_leaves_them_alone(ran):
    others = (TIERS[0] | {"train_watts": 7.0}, TIERS[1])
    assert not replayed(ran(*SOLVED), others).changed.any()


def test_rounds_in_which_other_work_counts_are_flagged_and_end_what_is_known_of_accuracy(ran):
    replay = replayed(ran(*BUSY), deadline_s=1.0)
    then = replay.recorded.clients
    late = np.unique(then["round"][then["lasts_s"] > 1.0]).tolist()
    assert replay.flagged_rounds == late != []
    told = summary.summary_from(replay)
    assert told["unknown"][0]["reason"] == "other work counts than in the run"
    assert told["unknown"][0]["rounds"] == len(late)
    assert [each.knows_score for each in replay.rounds] == [round < late[0] for round in range(1, 5)]


def test_a_deadline_that_nobody_misses_changes_nothing(ran):
    told = summary.summary_from(replayed(ran(*BUSY), deadline_s=1e6))
    assert told["exact"]
    assert told["simulated_s"] == told["recorded"]["simulated_s"]


def test_other_epochs_are_flagged(ran):
    replay = replayed(ran(*PARTIAL, *BUSY), deadline_s=1e6)
    trained = replay.recorded.clients["planned_epochs"]
    flagged = next(
        each for each in replay.unknown if each.reason.startswith("they would have trained another number")
    )
    assert flagged.client_rounds == (trained < 3).sum() > 0
    assert "which is exact" in flagged.reason


def test_who_answers_only_now_is_flagged_and_left_out(ran):
    replay = replayed(ran(*BUSY, tiers=ONLINE_AT_TIMES), TIERS)
    silent = replay.recorded.clients["fate"] == "unreachable"
    rounds = np.unique(replay.recorded.clients["round"][silent]).tolist()
    flagged = next(each for each in replay.unknown if each.reason.startswith("clients that did not answer"))
    assert (flagged.client_rounds, flagged.rounds) == (silent.sum(), len(rounds))
    assert set(rounds) <= set(replay.flagged_rounds)


def asked_others(replay) -> list[int]:
    return [each.round for each in replay.rounds if each.selects_others]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "tiers"),
    [("available", ONLINE_AT_TIMES), ("round-robin", ON_BATTERIES), ("oort", TIERS)],
    ids=["online", "batteries", "seconds"],
)
def test_where_others_would_have_been_asked_accuracy_is_not_known_from_round_1(ran, rule, tiers):
    folder = ran(f"selection.rule={rule}", "stop.accuracy=0.99", tiers=tiers)
    replay = replayed(folder, faster(tiers, 1.3))
    told = summary.summary_from(replay)
    assert told["flagged_rounds"] == asked_others(replay) == [1, 2, 3, 4]
    assert told["accuracy"] is told["best_accuracy"] is None
    assert [(each["round"], each["known"]) for each in told["targets"]] == [(None, False)] * 3
    rounds = {each["reason"]: each["rounds"] for each in told["unknown"]}
    assert rounds[f"selection.rule={rule!r} would have selected others: the selected clients are as recorded"] == 4
    assert rounds["accuracy from round 1 on: another model would have been learned"] == 4
    assert "in which round stop.accuracy=0.99 would have ended the run" in rounds
    assert "others would have been selected: 1-4" in summary.unknown_lines(told)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["available", "round-robin", "power-of-choice", "by-examples"])
def test_who_can_be_reached_at_any_time_is_asked_on_other_devices_too(ran, rule):
    folder = ran(f"selection.rule={rule}")
    replay = replayed(folder, faster(TIERS, 1.3))
    assert summary.summary_from(replay)["exact"]
    assert_equal_clocks(replay, ran(f"selection.rule={rule}", tiers=faster(TIERS, 1.3)))


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "tiers"), [("available", ONLINE_AT_TIMES), ("oort", TIERS)])
def test_with_another_deadline_others_are_asked_once_a_round_begins_at_another_time(ran, rule, tiers):
    folder = ran(f"selection.rule={rule}", *BUSY, tiers=tiers)
    duration_s = [each - 0.7 for each in finished_run.read(str(folder)).rounds["round_s"]]
    replay = replayed(folder, deadline_s=(sorted(duration_s)[-1] + sorted(duration_s)[-2]) / 2)
    (cut,) = np.flatnonzero(np.array(duration_s) == max(duration_s)) + 1
    assert asked_others(replay) == list(range(cut + 1, 5))
    assert replay.flagged_rounds == list(range(cut, 5))
    assert [each.knows_score for each in replay.rounds] == [round < cut for round in range(1, 5)]
    assert asked_others(replayed(folder, deadline_s=1e6)) == []


def test_who_is_asked_by_losses_is_asked_otherwise_after_another_model(ran):
    replay = replayed(ran("selection.rule=power-of-choice"), narrower())
    first = min(each.round for each in replay.rounds if not each.knows_score)
    assert asked_others(replay) == list(range(first + 1, 5)) != []


def test_what_was_prepared_is_kept_and_said(ran):
    replay = replayed(ran(method="autoflip", tiers=FAILING), faster(FAILING))
    told = summary.summary_from(replay)
    assert told["preparation_s"] == replay.recorded.summary["preparation_s"] > 0
    reasons = [each["reason"] for each in told["unknown"]]
    assert reasons[0].startswith("the preparation before round 1 is not timed again")
    assert reasons[1].startswith("method.name='autoflip' chooses submodels from what it learns")
    assert told["accuracy"] is None


def test_a_run_that_would_have_gone_on_says_so(ran):
    replay = replayed(ran("stop.simulated_s=3", rounds=8, tiers=FAILING), faster(FAILING, 4.0))
    last = replay.rounds[-1].round
    assert replay.unknown[-1].reason == f"the rounds after round {last}, the last one of the run"
    assert replay.unknown[-1].rounds == 8 - last


def test_a_run_that_ends_earlier_on_slower_devices_ends_there(ran):
    folder = ran("stop.simulated_s=3", rounds=8, tiers=FAILING)
    slower = replayed(folder, faster(FAILING, 0.5))
    assert len(slower.rounds) < len(replayed(folder).rounds)


def test_records_that_another_version_has_left_are_not_called_exact(ran):
    recorded = finished_run.read(str(ran()))
    moved = {**recorded.clients, "planned_train_flops": recorded.clients["planned_train_flops"] * 2}
    of_another = dataclasses.replace(recorded, clients=moved)
    expected = ["simulated_s", "energy_j", "train_flops"]
    for given in ((), (dealt(recorded, tiers=list(faster(TIERS))),), (None, 1e6)):
        told = summary.summary_from(replays.replay(of_another, *given))
        assert not told["exact"]
        assert [each["reason"].split()[0] for each in told["unknown"][:3]] == expected


def test_rounds_are_written_in_short():
    assert in_short([]) == ""
    assert in_short([1, 2, 3, 5, 8, 9]) == "1-3, 5, 8-9"
