import numpy as np
import pytest

from raysim.core.errors import SettingError
from raysim.data.partition import PARTITIONS, check_partition, partition, to_row_sets
from raysim.data.rules import PartitionOptions, top_up

LABELS = np.random.Generator(np.random.PCG64(0)).integers(0, 10, 1437)


TOPPED_UP = ["iid", "dirichlet", "dirichlet-clients", "quantity"]


def deal(num_clients=20, name="dirichlet", seed=0, users=None, **options):
    return partition(LABELS, num_clients, name, PartitionOptions(**options), seed, users)


def class_counts(rows) -> np.ndarray:
    return np.stack([np.bincount(LABELS[rows[client]], minlength=10) for client in range(len(rows))])


@pytest.mark.parametrize("name", TOPPED_UP)
@pytest.mark.parametrize(("num_clients", "min_examples"), [(1, 1), (20, 1), (20, 40), (100, 14), (1437, 1)])
def test_every_row_goes_to_exactly_one_client(name, num_clients, min_examples):
    rows = deal(num_clients, name, min_examples=min_examples)
    assert len(rows) == num_clients
    assert np.array_equal(np.sort(rows.rows), np.arange(len(LABELS)))
    assert rows.counts.sum() == len(LABELS)
    assert rows.counts.min() >= min_examples


@pytest.mark.parametrize("name", [*TOPPED_UP, "shards", "classes", "resample"])
def test_a_clients_rows_are_in_ascending_order(name):
    rows = deal(name=name)
    assert all((np.diff(rows[client]) > 0).all() for client in range(len(rows)))


@pytest.mark.parametrize("name", [*TOPPED_UP, "shards", "classes", "resample"])
def test_the_seed_decides_the_partition(name):
    assert np.array_equal(deal(name=name)[3], deal(name=name)[3])
    assert not np.array_equal(deal(name=name)[3], deal(name=name, seed=1)[3])


def test_iid_pieces_differ_by_at_most_one_row():
    counts = deal(name="iid").counts
    assert counts.max() - counts.min() == 1


def test_dirichlet_with_a_huge_alpha_gives_everybody_the_same_share_of_every_class():
    counts = class_counts(deal(alpha=1e5, min_examples=1))
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
    assert deal(alpha=0.05, min_examples=1).counts.min() < 10
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
    with pytest.raises(
        SettingError, match=r"data\.partition\.name='dirichelet' is unknown; known: dirichlet, dirichlet-clients, "
    ):
        deal(name="dirichelet")


@pytest.mark.parametrize("name", PARTITIONS)
def test_options_a_rule_does_not_read_are_refused(name):
    values = {"alpha": 0.5, "min_examples": 3, "shards_per_client": 3, "classes_per_client": 3, "path": "rows.json",
              "examples_per_client": 30}  # fmt: skip
    needed = {option: values[option] for option in PARTITIONS[name].needs}
    for option, value in values.items():
        options = PartitionOptions(**{**needed, option: value})
        if option in PARTITIONS[name].reads:
            check_partition(name, options)
            continue
        with pytest.raises(SettingError) as refused:
            check_partition(name, options)
        assert str(refused.value).startswith(
            f"data.partition.{option}={value!r} has no effect with name={name!r}; allowed: null; options it reads: "
        )


def test_a_file_must_be_given():
    with pytest.raises(SettingError, match=r"data\.partition\.path=null is not allowed with name='file'"):
        deal(name="file")


def test_clients_of_dirichlet_clients_are_equally_large_with_a_class_mix_of_their_own():
    rows = deal(name="dirichlet-clients", alpha=0.5)
    assert set(rows.counts) == {71, 72}
    assert class_counts(rows).max(axis=1).sum() / len(LABELS) > 0.6
    means = [
        class_counts(deal(name="dirichlet-clients", alpha=alpha)).max(axis=1).mean() for alpha in (0.1, 1, 10, 100)
    ]
    assert means == sorted(means, reverse=True)


def test_shards_leave_most_clients_two_or_three_classes():
    counts = class_counts(deal(name="shards"))
    seen = (counts > 0).sum(axis=1)
    assert seen.max() <= 4  # two shards, each across one border at most
    assert np.median(seen) <= 3
    assert ((counts > 0).sum(axis=1) > 2).sum() <= 9  # ten classes have nine borders
    sizes = deal(name="shards", shards_per_client=5).counts
    assert sizes.max() - sizes.min() <= 5
    with pytest.raises(SettingError, match=r"shards_per_client=72 is not allowed .* allowed: 1 to 71"):
        deal(name="shards", shards_per_client=72)


@pytest.mark.parametrize("wanted", [1, 2, 7, 10])
def test_clients_have_rows_of_exactly_as_many_classes_as_asked_for(wanted):
    counts = class_counts(deal(name="classes", classes_per_client=wanted))
    assert ((counts > 0).sum(axis=1) == wanted).all()
    for column in counts.T:
        assert column[column > 0].max() - column[column > 0].min() <= 1


def test_more_classes_than_there_are_or_more_owners_than_rows_are_refused():
    with pytest.raises(SettingError, match=r"classes_per_client=11 is not allowed; allowed: 1 to 10"):
        deal(name="classes", classes_per_client=11)
    with pytest.raises(
        SettingError, match=r"classes_per_client=10 is not allowed: class \d+ has 1\d\d training rows"
    ):
        deal(200, name="classes", classes_per_client=10)


def test_quantity_skews_sizes_and_leaves_the_classes_alone():
    def largest(alpha: float) -> int:
        return int(deal(name="quantity", alpha=alpha).counts.max())

    assert largest(0.1) > largest(1.0) > largest(100.0) > 1437 / 20
    biggest = class_counts(deal(name="quantity", alpha=0.1))
    shares = biggest[biggest.sum(axis=1).argmax()] / biggest.sum(axis=1).max()
    np.testing.assert_allclose(shares, np.bincount(LABELS) / 1437, atol=0.05)


@pytest.mark.parametrize("alpha", [1e-12, 1e-300, 1e300])
@pytest.mark.parametrize("name", [name for name in PARTITIONS if "alpha" in PARTITIONS[name].reads])
def test_no_alpha_is_too_small_or_too_large(name, alpha):
    assert np.array_equal(np.sort(deal(name=name, alpha=alpha).rows), np.arange(1437))
