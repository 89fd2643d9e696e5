import sys
import time

import numpy as np
import pytest

from raysim.core import seeding
from raysim.core.errors import SettingError
from raysim.selection import oort
from raysim.selection.table import SELECTIONS, SelectionRule, choose, initial_history, resolve, updated_history
from raysim.selection.view import COLUMNS, SelectionView
from raysim.simulation.build import build_scenario, check_names
from raysim.simulation.participants import select_clients
from raysim.simulation.transition import initial_state
from tests.conftest import tiny_settings


def view(num_clients: int = 20, size: int = 5, round: int = 1, seed: int = 0, **given) -> SelectionView:
    given = {"examples": np.arange(1, num_clients + 1), **given}
    return SelectionView(num_clients, size, round, seed, **given)


def chosen(name: str, options: dict | None = None, **given) -> list[int]:
    seen = view(**given)
    return choose(resolve(name, options or {}, seen.size), seen).tolist()


def some_history(num_clients: int, known: float = 0.7, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    unknown = rng.random(num_clients) > known
    return {
        "asked_round": np.where(unknown, 0.0, rng.integers(1, 20, num_clients)),
        "last_loss": np.where(unknown, np.nan, rng.exponential(1.0, num_clients)),
        "last_s": np.where(unknown, np.nan, rng.exponential(10.0, num_clients)),
    }


# What all rules have in common.


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_cohort_has_distinct_clients_in_ascending_order(name, size):
    for history in ({}, some_history(20)):
        ids = chosen(name, size=size, round=20, history=history)
        assert len(ids) == size
        assert ids == sorted(set(ids))
        assert set(ids) <= set(range(20))


@pytest.mark.parametrize("name", SELECTIONS)
def test_round_and_seed_decide_the_cohort(name):
    given = {"num_clients": 1000, "size": 30, "history": some_history(1000)}
    first = chosen(name, round=21, **given)
    assert first == chosen(name, round=21, **given)
    assert first != chosen(name, round=21, seed=1, **given) or name == "power-of-choice"
    assert (first != chosen(name, round=22, **given)) == (name != "round-robin")  # its memory decides


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_excluded_are_never_asked(name):
    rng = np.random.default_rng(0)
    for round in range(1, 30):
        exclude = rng.random(20) < 0.5
        ids = chosen(name, round=round, exclude=exclude, history=some_history(20, seed=round))
        assert not exclude[ids].any()
        assert len(ids) == min(5, (~exclude).sum())


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name != "uniform"])
def test_only_those_who_are_online_are_asked_even_if_they_are_few(name):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.3, 0.8):
        online, exclude = rng.random(20) < share, rng.random(20) < 0.2
        ids = chosen(name, online=online, exclude=exclude, round=9, history=some_history(20))
        assert (online & ~exclude)[ids].all()
        assert len(ids) == min(5, (online & ~exclude).sum())


def test_uniform_asks_those_who_are_offline_too():
    online = np.arange(20) < 2
    assert chosen("uniform", online=online) == chosen("uniform")


@pytest.mark.parametrize("name", [name for name in SELECTIONS if name != "uniform"])
def test_a_client_that_would_not_be_asked_can_be_left_out_without_a_change(name):
    """The order of clients and who else is there change nothing: every client has a draw of its own."""
    history = {**some_history(20, known=1.0), "last_s": np.full(20, np.nan)}
    options = {"exploration": 0.0, "exploration_min": 0.0, "cutoff": 0.0, "clip": 1.0} if name == "oort" else {}
    if name == "power-of-choice":
        options = {"candidates": 5}
    given = {"round": 9, "history": history, "options": options}
    first = chosen(name, **given)
    best = int(np.nanargmax(history["last_loss"] * np.arange(1, 21)))
    worst = int(np.nanargmin(history["last_loss"] * np.arange(1, 21)))
    for other in set(range(20)) - set(first) - {best, worst}:
        assert chosen(name, exclude=np.arange(20) == other, **given) == first


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_hundred_thousand_clients_take_a_fraction_of_a_second(name):
    given = {"num_clients": 100_000, "size": 100, "history": some_history(100_000), "round": 30}
    seen, rule = view(online=np.ones(100_000, dtype=np.bool_), **given), resolve(name, {}, 100)
    started = time.process_time()
    assert len(choose(rule, seen)) == 100
    assert time.process_time() - started < 0.25


# Each rule.


@pytest.mark.parametrize("exclude", [None, np.zeros(60, dtype=np.bool_)])
def test_uniform_draws_as_it_always_did(exclude):
    for round in (1, 2, 7):
        rng = seeding.generator(3, "selection", round)
        expected = np.sort(rng.choice(60, 12, replace=False))
        assert chosen("uniform", num_clients=60, size=12, round=round, seed=3, exclude=exclude) == expected.tolist()


def counts_of(name: str, rounds: int, num_clients: int, size: int, **given) -> np.ndarray:
    rule = resolve(name, {}, size)
    ids = [choose(rule, view(num_clients, size, round, **given)) for round in range(1, rounds + 1)]
    return np.bincount(np.concatenate(ids), minlength=num_clients)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", ["uniform", "available"])
def test_every_client_is_drawn_equally_often(name):
    counts = counts_of(name, 4000, 10, 3)
    assert chi_square(counts, np.full(10, 1200.0)) < 27.9  # 9 degrees of freedom, 1 in 1000


@pytest.mark.slow
def test_by_examples_draws_in_proportion_to_the_rows():
    examples = np.array([10, 20, 30, 40, 100, 200])
    counts = counts_of("by-examples", 6000, 6, 1, examples=examples)
    assert chi_square(counts, 6000 * examples / examples.sum()) < 20.5  # 5 degrees of freedom, 1 in 1000


@pytest.mark.slow
def test_by_examples_draws_pairs_as_successive_draws_would():
    examples = np.array([1, 2, 3])
    counts = counts_of("by-examples", 6000, 3, 2, examples=examples)
    # in a pair with probability p_i + sum over j of p_j p_i / (1 - p_j)
    p = examples / 6
    inside = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    assert counts / 6000 == pytest.approx(inside, abs=0.02)


def test_power_of_choice_keeps_the_highest_losses_of_all_candidates():
    losses = np.array([0.5, 3.0, 1.0, 2.0, 0.1, 4.0])
    given = {"num_clients": 6, "size": 2, "history": {"last_loss": losses}}
    assert chosen("power-of-choice", {"candidates": 6}, **given) == [1, 5]
    unknown = {**given, "history": {"last_loss": np.where(np.arange(6) == 4, np.nan, losses)}}
    assert chosen("power-of-choice", {"candidates": 6}, **unknown) == [4, 5]


def test_power_of_choice_draws_its_candidates_in_proportion_to_rows():
    examples, losses = np.array([1, 1, 1, 1, 50, 50]), np.array([9.0, 9.0, 9.0, 9.0, 1.0, 1.0])
    rule = resolve("power-of-choice", {"candidates": 2}, 2)
    given = {"examples": examples, "history": {"last_loss": losses}}
    both_large = [choose(rule, view(6, 2, round, **given)).tolist() == [4, 5] for round in range(1, 1001)]
    assert np.mean(both_large) == pytest.approx(2 * (50 / 104) * (50 / 54), abs=0.05)


def test_power_of_choice_draws_twice_as_many_candidates_as_it_keeps():
    losses = np.arange(100.0)
    lowest = [
        min(
            chosen(
                "power-of-choice",
                num_clients=100,
                size=20,
                round=round,
                examples=np.ones(100),
                history={"last_loss": losses},
            )
        )
        for round in range(1, 200)
    ]
    assert 30 < np.mean(lowest) < 70  # the median of 40 of 100; of all 100 it would be 80


def test_round_robin_asks_everybody_once_before_anybody_twice():
    rule = resolve("round-robin", {}, 5)
    history, asked = initial_history(rule, 20), []
    for round in range(1, 21):
        ids = choose(rule, view(size=5, round=round, history=history))
        history = updated_history(rule, history, ids, np.ones(5), np.ones(5), round)
        asked.append(ids)
    for start in range(0, 20, 4):
        assert sorted(np.concatenate(asked[start : start + 4])) == list(range(20))
    assert asked[0].tolist() != list(range(5))


def test_round_robin_takes_who_has_waited_longest():
    history = {"asked_round": np.array([5.0, 3.0, 0.0, 4.0, 3.0])}
    assert chosen("round-robin", num_clients=5, size=3, round=6, history=history) == [1, 2, 4]


# Oort.

OORT = {name: option.default for name, option in oort.OPTIONS.items()}


def test_oorts_utility_is_the_one_computed_by_hand():
    history = {
        "asked_round": np.array([4.0, 2.0, 9.0, 1.0]),
        "last_loss": np.array([1.0, 2.0, 0.5, 3.0]),
        "last_s": np.array([10.0, 40.0, 20.0, np.nan]),
    }
    options = {**OORT, "clip": 1.0, "preferred_s": 20.0}
    seen = view(4, 2, 10, examples=np.array([10, 20, 40, 30]), history=history, options=options)
    found = oort.utilities(seen, np.arange(4))
    # rows x loss = 10, 40, 20, 90, scaled to 0, 3/8, 1/8, 1
    uncertain = np.sqrt(0.1 * np.log(10) / np.array([4, 2, 9, 1]))
    assert found == pytest.approx((np.array([0, 3 / 8, 1 / 8, 1]) + uncertain) * [1, 0.25, 1, 1])


def test_oort_clips_outlying_utilities():
    losses = np.append(np.linspace(0, 1, 99), 1000.0)
    history = {"last_loss": losses, "asked_round": np.ones(100), "last_s": np.ones(100)}
    seen = view(100, 5, 1, examples=np.ones(100, dtype=np.int64), history=history, options=OORT)
    found = oort.utilities(seen, np.arange(100))
    assert found.max() == 1
    assert (found == 1).sum() == 5
    assert found[50] > 0.4


def test_oorts_preferred_seconds_are_a_quantile_of_all_that_is_known():
    history = {**some_history(10, known=1.0), "last_s": np.arange(1.0, 11.0)}
    seen = view(10, 2, 3, history=history, options={**OORT, "preferred_quantile": 0.5})
    without = view(10, 2, 3, history={**history, "last_s": np.full(10, np.nan)}, options=seen.options)
    shares = oort.utilities(seen, np.arange(10)) / oort.utilities(without, np.arange(10))
    assert shares == pytest.approx(np.minimum(1, 5.5 / np.arange(1, 11)) ** 2)


def test_oort_explores_less_and_less():
    history, explored = some_history(1000, known=0.5), []
    for round in (1, 20, 100, 200):
        ids = np.array(chosen("oort", num_clients=1000, size=100, round=round, history=history))
        explored.append(int(np.isnan(history["last_loss"][ids]).sum()))
    assert explored == [90, int(90 * 0.98**19), 20, 20]


def test_oort_exploits_the_best_and_those_close_to_them():
    losses = np.concatenate([np.full(10, 5.0), np.full(10, 4.9), np.full(80, 1.0)])
    history = {"last_loss": losses, "asked_round": np.ones(100), "last_s": np.full(100, np.nan)}
    given = {"num_clients": 100, "size": 10, "examples": np.ones(100, dtype=np.int64), "history": history}
    counts = np.zeros(100)
    for round in range(1, 301):
        counts[chosen("oort", round=round, **given)] += 1
    assert (counts[20:] == 0).all()
    assert counts[:10].mean() > counts[10:20].mean() > 100


def test_oort_fills_up_with_the_other_kind():
    everybody_known, nobody_known = some_history(20, known=2.0), {}
    assert len(chosen("oort", size=20, history=everybody_known)) == 20
    assert len(chosen("oort", size=20, round=500, history=nobody_known)) == 20


# What is remembered.


def test_a_rule_remembers_what_it_needs():
    for name, rule in SELECTIONS.items():
        history = initial_history(rule, 4)
        needed = {"power-of-choice": {"last_loss"}, "oort": set(COLUMNS), "round-robin": {"asked_round"}}
        assert set(history) == needed.get(name, set())


def test_what_has_not_arrived_leaves_the_last_value():
    rule = SELECTIONS["oort"]
    before = initial_history(rule, 4)
    assert before["asked_round"].tolist() == [0, 0, 0, 0]
    assert np.isnan(before["last_loss"]).all()
    first = updated_history(rule, before, np.array([1, 3]), np.array([2.0, 3.0]), np.array([5.0, 6.0]), 1)
    second = updated_history(rule, first, np.array([0, 3]), np.array([1.0, np.nan]), np.array([4.0, np.nan]), 2)
    assert before["asked_round"].tolist() == [0, 0, 0, 0], "the history before is left as it is"
    assert second["asked_round"].tolist() == [2, 1, 0, 2]
    assert second["last_loss"].tolist() == pytest.approx([1.0, 2.0, np.nan, 3.0], nan_ok=True)
    assert second["last_s"].tolist() == pytest.approx([4.0, 5.0, np.nan, 6.0], nan_ok=True)


# Settings.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unifrom", {}, r"selection.rule='unifrom' is unknown; known: uniform, "),
        ("oort", {"cut_off": 1}, r"selection.options.cut_off=1 is unknown with selection.rule='oort'; .*: cutoff, "),
        ("uniform", {"candidates": 3}, r"selection.options.candidates=3 is unknown .*; options of its own: none"),
        ("oort", {"clip": 1.5}, r"selection.options.clip=1.5 is not allowed; allowed: a number from 0 to 1"),
        ("power-of-choice", {"candidates": 2.5}, r"candidates=2.5 is not allowed; allowed: a whole number from 0"),
        (
            "power-of-choice",
            {"candidates": 4},
            r"candidates=4 is less than selection.clients_per_round=5; ",
        ),
        ("no_such_module:pick", {}, r"selection.rule='no_such_module:pick': module 'no_such_module' cannot be"),
        ("math:pi", {}, r"selection.rule='math:pi' is float; allowed: a function"),
    ],
)
def test_unknown_rules_and_options_are_refused(name, options, message):
    with pytest.raises(SettingError, match=message):
        resolve(name, options, clients_per_round=5)


def test_names_are_checked_before_anything_is_loaded():
    with pytest.raises(SettingError, match=r"selection\.rule='unifrom' is unknown"):
        check_names(tiny_settings("selection.rule=unifrom"))


def test_a_scenario_selects_by_its_rule():
    rule = ("selection.rule=by-examples",)
    settings = tiny_settings(*rule)
    scenario = build_scenario(settings)
    ids = select_clients(scenario, initial_state(scenario), 3)
    seen = view(6, 3, examples=scenario.workload.population.train.counts)
    assert scenario.selection is not None
    assert ids.tolist() == choose(SELECTIONS["by-examples"], seen).tolist()


@pytest.fixture
def users_rule(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text("def last(view):\n    return view.reachable()[-view.size :]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_rules", None)


def test_a_rule_of_the_users_own_is_a_dotted_path(users_rule):
    scenario = build_scenario(tiny_settings("selection.rule=my_rules:last"))
    assert select_clients(scenario, initial_state(scenario), 3).tolist() == [3, 4, 5]
    assert set(initial_history(scenario.selection, 2)) == set(COLUMNS)
    assert chosen("my_rules:last", size=2, exclude=np.arange(20) == 19) == [17, 18]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3], "gives 3 ids; allowed: up to 2 distinct"),
        ([1, 1], "gives 2 ids; allowed: up to 2 distinct"),
        ([5, 20], "gives an id that is not in 0 to 19"),
        ([-1], "gives an id that is not in 0 to 19"),
        ([0.5], "gives float64 of shape"),
        ([7], "gives an excluded client"),
    ],
)
def test_what_a_users_rule_gives_is_checked(ids, message):
    rule = SelectionRule("my_rules:wrong", "", lambda _: np.array(ids))
    with pytest.raises(ValueError, match=message):
        choose(rule, view(size=2, exclude=np.arange(20) == 7))
