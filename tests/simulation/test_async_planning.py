"""Asynchronous rounds against an event loop written the slow way."""

import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from raysim.clock import outcomes
from raysim.core import signals
from raysim.core.errors import SettingError
from raysim.core.tensors import Params
from raysim.executors.in_process import InProcessExecutor
from raysim.methods.table import METHODS
from raysim.population import availability
from raysim.simulation.build import build_scenario, check_names
from raysim.simulation.planning import plan_round
from raysim.simulation.round import run_round
from raysim.simulation.transition import initial_state
from tests.clocked import FRAIL, ONE_VERSION, clocked, played, with_figures
from tests.conftest import settings_of
from tests.methods.slow_rounds import best, close, held_by, l1, member, small_scenario, train
from tests.simulation.slow_asynchronous import AtWork, play

CASES = {
    "buffer = concurrency": (12, "clock.buffer_size=4", "clock.concurrency=4"),
    "buffer > concurrency": (12, "clock.buffer_size=6", "clock.concurrency=2"),
    "buffer < concurrency": (12, "clock.buffer_size=2", "clock.concurrency=7"),
    "one at a time": (12, "clock.buffer_size=1", "clock.concurrency=1"),
    "an update at once": (12, "clock.buffer_size=1", "clock.concurrency=8"),
    "the smallest population that fills": (6, "clock.buffer_size=3", "clock.concurrency=4"),
    "a server that takes its time": (12, "clock.buffer_size=2", "clock.concurrency=5", "clock.server_s=1.5"),
}
POPULATION = ("population.clients=12", "data.max_train_examples=300", "rounds=6")


def of_case(case: str, failure_rate: float = 0.0):
    clients, *clock = CASES[case]
    sizes = ("population.clients=12",) if clients == 12 else ()
    scenario = clocked("magnitude", "async", *POPULATION[1:], *sizes, *clock)
    return with_figures(scenario, failure_rate=failure_rate) if failure_rate else scenario


def as_rows(ended: list[AtWork], unfinished: bool = False) -> list[tuple]:
    outcome = {True: outcomes.DROPPED, False: outcomes.UNFINISHED if unfinished else outcomes.COUNTED}
    return sorted((one.client, one.version, outcome[one.drops_out and not unfinished]) for one in ended)


@pytest.mark.slow
@pytest.mark.parametrize("failure_rate", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_who_ends_up_in_each_buffer_and_when_it_is_full(case: str, failure_rate: float) -> None:
    scenario = of_case(case, failure_rate)
    expected = play(scenario, 6)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    for buffer in expected[:-1]:
        state, report = run_round(scenario, state, executor)
        rows = report.clients
        found = list(zip(rows["client"].tolist(), rows["started_round"].tolist(), rows["fate"].tolist(), strict=True))
        assert found == as_rows(buffer.ended)
        assert report.round_s == pytest.approx(buffer.seconds, rel=1e-9)
        slow = {one.client: one for one in buffer.ended}
        np.testing.assert_allclose(rows["start_s"], [slow[c].starts_s for c in rows["client"]], rtol=1e-9)
        np.testing.assert_allclose(
            rows["start_s"] + rows["lasts_s"], [slow[c].ends_s for c in rows["client"]], rtol=1e-9
        )
        going_on = [(c, work.cohort.round) for work in state.in_flight for c in work.cohort.clients.tolist()]
        assert sorted(going_on) == sorted((one.client, one.version) for one in buffer.still_at_work)
        assert len({client for client, _ in going_on}) == len(going_on) <= scenario.clock.concurrency
        assert set(state.versions) == {version for _, version in going_on}
    if failure_rate and case != "one at a time":
        assert any(one.drops_out for buffer in expected for one in buffer.ended)


def test_the_cases_differ_in_what_they_are_about() -> None:
    buffers = {case: play(of_case(case), 6) for case in CASES}
    late = {
        case: sum(one.version < place + 1 for place, each in enumerate(found) for one in each.ended)
        for case, found in buffers.items()
    }
    assert late["one at a time"] == 0
    assert late["buffer > concurrency"] < late["buffer < concurrency"]
    assert (
        max(place + 1 - one.version for place, each in enumerate(buffers["an update at once"]) for one in each.ended)
        >= 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("failure_rate", [0.0, 0.4])
def test_nobody_is_twice_at_work_and_nobody_starts_twice_from_one_version(failure_rate: float) -> None:
    for case in CASES:
        _, reports = played(of_case(case, failure_rate))
        rows = {name: np.concatenate([report.clients[name] for report in reports]) for name in reports[0].clients}
        assert len(set(zip(rows["client"], rows["started_round"], strict=True))) == len(rows["client"])
        for client in range(len(of_case(case).workload.population)):
            own = rows["client"] == client
            order = np.argsort(rows["start_s"][own])
            starts, ends = rows["start_s"][own][order], (rows["start_s"] + rows["lasts_s"])[own][order]
            assert (starts[1:] >= ends[:-1] - 1e-9).all()


@pytest.mark.parametrize("mode", ["a third of a buffer is stale", "nobody is there"])
def test_a_buffer_that_cannot_be_filled_is_taken_as_it_is_after_the_seconds_of_an_empty_round(mode: str) -> None:
    scenario = with_figures(
        clocked("magnitude", "async", "clock.empty_round_s=7.0", "clock.buffer_size=4", "clock.concurrency=2"),
        failure_rate=0.75 if mode[0] == "a" else 1.0,
    )
    expected = play(scenario, 4)
    _, reports = played(scenario, 3)
    short = 0
    for report, buffer in zip(reports, expected, strict=False):
        assert report.round_s == pytest.approx(buffer.seconds, rel=1e-9)
        counted = int((report.clients["fate"] == outcomes.COUNTED).sum())
        assert counted == len(buffer.counted)
        short += counted < 4
        if counted < 4:
            assert report.round_s > 7.25
            assert len(report.clients["client"]) == 6, "everybody has been asked"
    assert short
    assert reports[-1].totals.empty_rounds == sum(not buffer.counted for buffer in expected[:3])


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_parameters_after_three_buffers_are_those_of_a_slow_recomputation(exponent: float) -> None:
    """W + sum n_k s_k m_k D_k / sum n_k, D_k trained from the version the client received, s_k = (1 + age)^-a."""
    clock = ("clock.mode=async", "clock.buffer_size=2", "clock.concurrency=3", f"clock.staleness_exponent={exponent}")
    scenario = with_figures(small_scenario("magnitude", *clock, "rounds=9"), flops_per_s=3e6, failure_rate=0.15)
    plan, buffers = scenario.workload.plan, play(scenario, 4)
    state, executor = initial_state(scenario), InProcessExecutor(scenario.workload)
    params, versions, ages = state.params, {}, []
    for round, buffer in enumerate(buffers, start=1):
        versions[round] = params
        state, _ = run_round(scenario, state, executor)
        total = sum(member(scenario, one.client).n for one in buffer.counted)
        moved: Params = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in params.items()}
        for one in buffer.counted:
            client, base = member(scenario, one.client), versions[one.version]
            held = held_by(plan, best(plan, l1(plan, base), client.keep), base)
            trained, _ = train(scenario, base, one.client, one.version, held)
            weight = (1 + round - one.version) ** -exponent
            ages.append(round - one.version)
            for key in moved:
                moved[key] += client.n * weight * held[key] * (trained[key].double() - base[key].double()) / total
        params = {key: (value.double() + moved[key]).float() for key, value in params.items()}
        close(state.params, params)
    assert {0, 1} < set(ages)


@pytest.mark.slow
def test_stale_updates_count_for_less() -> None:
    digests = set()
    for exponent in (0.0, 0.5, 3.0):
        scenario = clocked(
            "magnitude", "async", *POPULATION, "clock.concurrency=7", f"clock.staleness_exponent={exponent}"
        )
        state, reports = played(scenario)
        assert max(report.round - report.clients["started_round"].min() for report in reports) >= 1
        digests.add(float(sum(value.double().abs().sum() for value in state.params.values())))
    assert len(digests) == 3


def test_equally_fast_clients_without_a_standby_are_one_synchronous_round_after_another() -> None:
    """With a buffer as large as what is at work and equal seconds, a buffer is the cohort that started together."""
    scenario = clocked("fedavg", "async", "clock.buffer_size=3", "clock.concurrency=3")
    even = with_figures(
        scenario,
        flops_per_s=1e30,
        compute_variation=0,
        link_variation=0,
        latency_s=1,
        down_bytes_per_s=1e30,
        up_bytes_per_s=1e30,
    )
    _, reports = played(even, 3)
    for report in reports:
        rows = report.clients
        assert (rows["start_s"] + rows["lasts_s"] <= report.totals.simulated_s).all()
    first = reports[0].clients
    assert (first["started_round"] == 1).all()
    assert len(first["client"]) == 3
    assert reports[0].round_s == pytest.approx(2.25, rel=1e-9)


def test_what_ends_while_the_server_is_busy_is_heard_when_it_is_done() -> None:
    scenario = clocked("magnitude", "async", *POPULATION, "clock.concurrency=6", "clock.server_s=100.0")
    _, reports = played(scenario, 4)
    for before, report in pairwise(reports):
        ended_s = (report.clients["start_s"] + report.clients["lasts_s"])[report.clients["fate"] == outcomes.COUNTED]
        assert (ended_s <= before.totals.simulated_s).all()
        assert report.round_s == pytest.approx(100.0, rel=1e-9), "all are there when it looks again"


@pytest.mark.slow
def test_unfinished_work_is_in_the_table_of_the_last_round_and_paid_for() -> None:
    scenario = clocked("magnitude", "async", *POPULATION, *FRAIL, "clock.concurrency=6", "clock.server_s=0.0")
    state, reports = played(scenario)
    going_on, _ = played(scenario, 5)
    last = reports[-1].clients
    rest = last["fate"] == outcomes.UNFINISHED
    assert rest.sum() >= 2
    assert (np.diff(last["client"]) > 0).all()
    assert (state.in_flight, state.versions) == ((), {})
    now = state.totals.simulated_s
    np.testing.assert_allclose((last["start_s"] + last["lasts_s"])[rest], now, rtol=1e-9)
    assert (last["lasts_s"][rest] < last["total_s"][rest]).all()
    assert last["down_bytes"][rest].sum() > 0
    assert last["train_flops"][rest].sum() > 0
    assert last["energy_j"][rest].sum() > 0
    for name in ("down_bytes", "up_bytes", "train_flops"):
        assert getattr(state.totals, name) == getattr(going_on.totals, name) + last[name].sum()
    assert not any((report.clients["fate"] == outcomes.UNFINISHED).any() for report in reports[:-1])
    assert np.isnan(last["train_loss"][rest]).all()


def test_a_standby_that_has_left_since_does_not_start(monkeypatch) -> None:
    """Clients that can be reached in the beginning and never again."""
    away = tuple(f"population.tiers.{tier}.availability=0.5" for tier in range(4))
    scenario = clocked("magnitude", "async", *POPULATION, *away, "clock.buffer_size=3", "clock.concurrency=2")
    monkeypatch.setattr(
        availability, "online_for_s", lambda devices, clients, now_s, seed: np.full(len(clients), 1e9)
    )
    monkeypatch.setattr(
        availability, "is_online", lambda devices, clients, now_s, seed: np.full(len(clients), now_s == 0)
    )
    plan = plan_round(scenario, initial_state(scenario))
    assert [work.outcomes.tolist() for work in plan.ended] == [[outcomes.COUNTED, outcomes.COUNTED]]
    assert plan.absent.outcomes.tolist() == [outcomes.UNREACHABLE] * 10
    assert plan.in_flight == ()


def test_a_population_that_is_all_away_is_asked_in_few_draws(monkeypatch) -> None:
    scenario = clocked(
        "fedavg",
        "async",
        "population.clients=700",
        "data.max_train_examples=null",
        "data.partition.name=iid",
        "data.partition.alpha=null",
        "data.heldout_share=0.0",
        "data.partition.min_examples=null",
        "clock.buffer_size=1",
        "clock.concurrency=1",
    )
    draws = []
    monkeypatch.setattr(
        availability,
        "is_online",
        lambda devices, clients, now_s, seed: draws.append(1) or np.zeros(len(clients), bool),
    )
    plan = plan_round(scenario, initial_state(scenario))
    assert plan.ended == ()
    assert plan.absent.clients.tolist() == list(range(700))
    assert plan.round_s == 60.25
    assert len(draws) < 15


ALLOWED = [name for name in METHODS if name not in ONE_VERSION]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALLOWED)
def test_methods_that_bear_several_versions_learn_from_them(name: str) -> None:
    scenario = clocked(name, "async", "clock.server_s=0.0")
    state, reports = played(scenario)
    assert all((report.clients["fate"] == outcomes.COUNTED).sum() == 2 for report in reports)
    assert any((report.clients["started_round"] < report.round).any() for report in reports)
    assert all(torch.isfinite(value).all() for value in state.params.values())
    assert any(not torch.equal(state.params[key], value) for key, value in initial_state(scenario).params.items())


REFUSED = {
    **{name: (f"method.name={name}",) for name in ("prunefl", "feddst", "fedtiny", "fedmef", "fedrts", "nefl")},
    "scaffold": ("method.name=scaffold",),
    "objective": ("method.name=magnitude", "method.objective=scaffold"),
    "secant": ("method.name=ca-hfp", "method.estimator=secant"),
    "diagnostics": ("method.name=ca-hfp", "diagnostics.every=2"),
}
MESSAGES = {
    **{
        name: f"method.name={name!r} is not allowed with clock.mode='async': it changes one mask for all"
        for name in ("prunefl", "feddst", "fedtiny", "fedmef", "fedrts")
    },
    "nefl": "method.name='nefl' is not allowed with clock.mode='async': it changes one mask for all or parameters",
    "scaffold": "method.objective='scaffold' is not allowed with clock.mode='async'",
    "objective": "method.objective='scaffold' is not allowed with clock.mode='async'",
    "secant": "method.estimator='secant' is not allowed with clock.mode='async'",
    "diagnostics": "diagnostics.every=2 is not allowed with clock.mode='async'",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_one_version_is_refused(what: str, capsys, tmp_path) -> None:
    from tests.cli.test_main import arguments
    from tests.commands import left_with

    overrides = (*REFUSED[what], "clock.mode=async", "clock.buffer_size=2")
    settings = settings_of("fedavg", *overrides)
    for check in (check_names, build_scenario):
        with pytest.raises(SettingError) as refusal:
            check(settings)
        assert str(refusal.value).startswith(MESSAGES[what])
        assert "allowed: clock.mode='sync', 'deadline' or 'over-selection'" in str(refusal.value)
    assert left_with(*arguments(*overrides), "--output", str(tmp_path / "run")) == signals.BAD_INPUT
    assert capsys.readouterr().err.startswith(f"raysim: {MESSAGES[what]}")


def test_every_method_is_either_allowed_or_refused() -> None:
    assert {name for name in METHODS if METHODS[name].one_version} | {"scaffold"} == set(ONE_VERSION)
    assert replace(METHODS["magnitude"], name="x").one_version is False
    assert importlib.import_module("raysim.simulation.async_planning").__doc__.count("2106.06639") == 1


@pytest.mark.parametrize(
    ("buffer_size", "concurrency", "fits"), [(4, 3, True), (4, 4, False), (1, 6, True), (6, 2, False)]
)
def test_a_buffer_and_what_is_at_work_have_to_fit_into_the_population(buffer_size, concurrency, fits) -> None:
    settings = ("clock.mode=async", f"clock.buffer_size={buffer_size}", f"clock.concurrency={concurrency}")
    if fits:
        assert settings_of("fedavg", *settings).clock.buffer_size == buffer_size
        return
    with pytest.raises(SettingError, match=r"together more than population\.clients=6 can fill"):
        settings_of("fedavg", *settings)
