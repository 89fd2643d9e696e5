"""Validation rows: a share of each class, drawn by the split's seed, that no client has."""

import json

import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data.partition import partition
from raysim.data.row_sets import RowSets
from raysim.data.rules import PartitionOptions
from raysim.data.stratified import rows_to_test, validation_rows
from raysim.simulation.build import build_scenario
from tests.conftest import tiny_settings

SIZES = (400, 200, 50, 9, 1)
LABELS = np.repeat(np.arange(len(SIZES)), SIZES)
RULES = ("iid", "dirichlet", "dirichlet-clients", "shards", "classes", "quantity", "resample")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.34, 0.9])
def test_each_class_gives_its_share_and_keeps_a_row(share: float) -> None:
    rows = validation_rows(LABELS, share, 3)
    counts = np.bincount(LABELS[rows], minlength=len(SIZES))
    assert len(rows) == round(share * len(LABELS))
    assert (np.diff(rows) > 0).all()
    assert (np.abs(counts - share * np.array(SIZES)) <= 1.5).all()
    assert (counts < SIZES).all()


def test_the_seed_decides_them_and_too_many_are_refused() -> None:
    assert np.array_equal(validation_rows(LABELS, 0.1, 3), validation_rows(LABELS, 0.1, 3))
    assert not np.array_equal(validation_rows(LABELS, 0.1, 3), validation_rows(LABELS, 0.1, 4))
    assert not len(validation_rows(LABELS, 0, 3))
    assert len(validation_rows(LABELS, 1e-9, 3)) == 1
    with pytest.raises(SettingError, match=r"data\.validation_share=0.999 is not allowed: it takes 659 of 660"):
        validation_rows(LABELS, 0.999, 3)


@pytest.mark.parametrize("rule", RULES)
def test_no_client_has_a_row_that_validates(rule: str) -> None:
    settings = tiny_settings("data.validation_share=0.15", f"data.partition={{name: {rule}}}")
    scenario = build_scenario(settings)
    population, validating = scenario.workload.population, set(scenario.validation_rows.tolist())
    owned = {
        int(row) for client in range(6) for part in (population.train, population.heldout) for row in part[client]
    }
    assert len(validating) == round(0.15 * 1437)
    assert not owned & validating
    assert not set(scenario.statistics_rows.tolist()) & validating
    if rule in ("iid", "dirichlet", "shards", "quantity"):
        assert len(owned) + len(validating) == 1437 == scenario.num_divided + len(validating)
    elsewhere = build_scenario(settings.model_copy(update={"seed": 5}))
    assert not np.array_equal(elsewhere.validation_rows, scenario.validation_rows)
    split = settings.data.model_copy(update={"split_seed": settings.split_seed})
    shared = build_scenario(settings.model_copy(update={"seed": 5, "data": split}))
    assert np.array_equal(shared.validation_rows, scenario.validation_rows)


def test_rows_of_a_file_keep_their_numbers_and_those_that_validate_are_taken_from_the_clients(tmp_path) -> None:
    path, without = tmp_path / "rows.json", np.array([1, 4, 659])
    path.write_text(json.dumps([[0, 1, 2], [3, 4, 5], [658, 659]]), encoding="utf-8")
    rows = partition(LABELS, 3, "file", PartitionOptions(path=str(path)), 0, without=without)
    assert isinstance(rows, RowSets)
    assert [rows[client].tolist() for client in range(3)] == [[0, 2], [3, 5], [658]]
    with pytest.raises(SettingError, match="all rows of client 2 validate"):
        partition(LABELS, 3, "file", PartitionOptions(path=str(path)), 0, without=np.array([658, 659]))


def test_users_of_a_file_are_those_of_all_training_rows(tmp_path) -> None:
    users, without = np.arange(len(LABELS)) % 5, np.arange(0, len(LABELS), 7)
    np.save(tmp_path / "users.npy", users)
    options = PartitionOptions(path=str(tmp_path / "users.npy"))
    from_file = partition(LABELS, 5, "natural", options, 0, without=without)
    own = partition(LABELS, 5, "natural", PartitionOptions(), 0, users, without)
    for client in range(5):
        assert np.array_equal(from_file[client], own[client])
        assert len(set(users[own[client]])) == 1
        assert not np.isin(own[client], without).any()


def test_rows_drawn_on_demand_skip_those_that_validate() -> None:
    rows = partition(LABELS, 400, "resample", PartitionOptions(examples_per_client=40), 0, without=np.arange(300))
    found = np.concatenate([rows[client] for client in range(len(rows))])
    assert (found.min(), found.max()) == (300, len(LABELS) - 1)
    whole = partition(LABELS, 400, "resample", PartitionOptions(examples_per_client=40), 0)
    assert [len(each) for each in rows.identity] == [6, 360]
    assert [len(each) for each in whole.identity] == [6]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_rows_to_test_are_a_share_of_each_class_and_never_all(share: float) -> None:
    labels = np.repeat([0, 1, 2], [2, 30, 100])
    tested = rows_to_test(labels, share, 0, "the labels")
    assert np.array_equal(tested, np.unique(tested))
    counts = np.bincount(labels[tested], minlength=3)
    assert counts[0] == 1
    assert counts[1:].tolist() == [max(1, min(29, round(30 * share))), max(1, min(99, round(100 * share)))]
    assert not np.array_equal(tested, rows_to_test(labels, share, 1, "the labels"))


def test_a_class_of_one_row_is_not_divided() -> None:
    with pytest.raises(SettingError, match="the labels: class 'b' has one row, which cannot be both"):
        rows_to_test(np.array([0, 0, 1]), 0.2, 0, "the labels", ("a", "b"))
