import numpy as np
import pytest

from raysim.data.partition import PARTITIONS, partition, to_row_sets, top_up
from raysim.errors import SettingError

LABELS = np.random.Generator(np.random.PCG64(0)).integers(0, 10, 1437)


def deal(num_clients=20, name="dirichlet", alpha=None, min_examples=1, seed=0):
    return partition(LABELS, num_clients, name, alpha, min_examples, seed)


def class_counts(rows) -> np.ndarray:
    return np.stack([np.bincount(LABELS[rows[client]], minlength=10) for client in range(len(rows))])


@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize(("num_clients", "min_examples"), [(1, 1), (20, 1), (20, 40), (100, 14), (1437, 1)])
def test_every_row_goes_to_exactly_one_client(name, num_clients, min_examples):
    rows = deal(num_clients, name, min_examples=min_examples)
    assert len(rows) == num_clients
    assert np.array_equal(np.sort(rows.rows), np.arange(len(LABELS)))
    assert rows.counts.sum() == len(LABELS)
    assert rows.counts.min() >= min_examples


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_clients_rows_are_in_ascending_order(name):
    rows = deal(name=name, min_examples=30)
    assert all((np.diff(rows[client]) > 0).all() for client in range(len(rows)))


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_seed_decides_the_partition(name):
    assert np.array_equal(deal(name=name).rows, deal(name=name).rows)
    assert not np.array_equal(deal(name=name).rows, deal(name=name, seed=1).rows)


def test_iid_pieces_differ_by_at_most_one_row():
    counts = deal(name="iid").counts
    assert counts.max() - counts.min() == 1


def test_dirichlet_with_a_huge_alpha_gives_everybody_the_same_share_of_every_class():
    counts = class_counts(deal(alpha=1e5))
    expected = np.bincount(LABELS) / 20
    assert np.abs(counts - expected).max() <= 1.5  # two cuts, each rounded by at most half a row, and a little noise


def test_dirichlet_with_a_small_alpha_leaves_a_client_few_classes():
    def largest_share(alpha: float) -> float:
        counts = class_counts(deal(alpha=alpha))
        return counts.max(axis=1).sum() / counts.sum()

    assert largest_share(0.05) > 0.6
    assert largest_share(0.05) > largest_share(0.5) > largest_share(50.0)


def test_dirichlet_takes_one_half_where_no_alpha_is_given():
    assert np.array_equal(deal().rows, deal(alpha=0.5).rows)
    assert not np.array_equal(deal().rows, deal(alpha=0.6).rows)


def test_dirichlet_leaves_nobody_poorer_than_min_examples():
    assert deal(alpha=0.05).counts.min() < 10
    assert deal(alpha=0.05, min_examples=10).counts.min() == 10


def test_top_up_takes_from_the_richest_only():
    parts = [np.arange(0, 3), np.arange(3, 103), np.arange(103, 123)]
    topped = top_up(parts, 10, np.random.Generator(np.random.PCG64(0)))
    assert [len(part) for part in topped] == [10, 93, 20]
    assert np.array_equal(topped[2], parts[2])
    assert set(parts[0]) < set(topped[0])
    assert np.array_equal(np.sort(np.concatenate(topped)), np.arange(123))


def test_top_up_goes_on_to_the_next_richest():
    parts = [np.arange(0), np.arange(0, 7), np.arange(7, 14)]
    topped = top_up(parts, 4, np.random.Generator(np.random.PCG64(0)))
    assert sorted(len(part) for part in topped) == [4, 4, 6]


def test_row_sets_keep_who_owns_what():
    rows = to_row_sets([np.array([5, 1]), np.array([], dtype=np.int64), np.array([0, 4, 2])])
    assert [rows[client].tolist() for client in range(3)] == [[1, 5], [], [0, 2, 4]]
    assert rows.counts.tolist() == [2, 0, 3]


def test_too_many_clients_are_refused():
    assert len(deal(287, min_examples=5)) == 287
    with pytest.raises(SettingError) as refused:
        deal(288, min_examples=5)
    assert str(refused.value) == (
        "population.clients=288 is too many for 1437 training rows with data.partition.min_examples=5; "
        "allowed: 1 to 287"
    )


def test_an_unknown_rule_names_the_nearest_first():
    with pytest.raises(SettingError, match=r"data\.partition\.name='dirichelet' is unknown; known: dirichlet, iid"):
        deal(name="dirichelet")


def test_iid_takes_no_alpha():
    with pytest.raises(SettingError, match=r"data\.partition\.alpha=0\.5 has no effect with name='iid'"):
        deal(name="iid", alpha=0.5)
