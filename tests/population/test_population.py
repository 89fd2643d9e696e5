from dataclasses import replace

import numpy as np
import pytest

from raysim.data.partition import to_row_sets
from raysim.population import population, sampling
from raysim.population.population import Population, num_heldout
from raysim.population.profiles import FIGURES, DeviceProfile, OnlineIntervals, Tier

TIERS = tuple(Tier(DeviceProfile(name, 1e9, 1e6, 1e6), 0.5, keep) for name, keep in (("slow", 0.5), ("fast", 1.0)))
SIZES = (1, 2, 7, 100)
ROWS = to_row_sets(np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1]))


def built(heldout_share: float = 0.2, seed: int = 0) -> Population:
    return population.build(sampling.of_tiers(TIERS, len(ROWS), seed), ROWS, heldout_share, seed)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_training_and_held_out_rows_are_a_clients_own_rows(share):
    clients = built(share)
    for client in range(len(ROWS)):
        both = np.concatenate([clients.train[client], clients.heldout[client]])
        assert np.array_equal(np.sort(both), ROWS[client])


@pytest.mark.parametrize(
    ("share", "heldout"),
    [(0.0, [0, 0, 0, 0]), (0.2, [0, 1, 1, 20]), (0.01, [0, 1, 1, 1]), (0.9, [0, 1, 6, 90]), (0.999, [0, 1, 6, 99])],
)
def test_held_out_rows_are_counted_by_hand(share, heldout):
    assert built(share).heldout.counts.tolist() == heldout
    assert [num_heldout(size, share) for size in SIZES] == heldout


def test_every_client_keeps_a_row_to_train_on():
    assert all(num_heldout(rows, share) < rows for rows in range(1, 50) for share in (0.0, 0.5, 0.99, 0.9999))


def test_the_held_out_rows_are_drawn_from_the_seed():
    assert np.array_equal(built().heldout.rows, built().heldout.rows)
    assert not np.array_equal(built().heldout[3], built(seed=1).heldout[3])
    assert not np.array_equal(built().heldout[3], ROWS[3][:20])


def test_what_a_client_holds_out_does_not_depend_on_the_others():
    shorter = to_row_sets([ROWS[0][:0], ROWS[1], ROWS[2], ROWS[3]])
    assert np.array_equal(
        population.build(sampling.of_tiers(TIERS, 4, 0), shorter, 0.2, 0).heldout[3], built().heldout[3]
    )


def test_a_client_has_its_tier_and_its_counts():
    clients = built()
    assert len(clients) == 4
    assert sorted(clients.devices.tier_of.tolist()) == [0, 0, 1, 1]
    client = clients.client(3)
    assert (client.id, client.examples, client.heldout) == (3, 80, 20)
    tier = TIERS[clients.devices.tier_of[3]]
    assert (client.device, client.keep_ratio) == (tier.device, tier.keep_ratio)


def test_the_digest_is_of_rows_and_tiers():
    one = built()
    others = replace(one.devices, device_of=1 - one.devices.device_of)
    swapped = Population(others, one.train, one.heldout)
    exchanged = Population(one.devices, one.heldout, one.train)
    digests = [population.digest(other) for other in (one, swapped, exchanged, built(0.3), built(seed=1))]
    assert len(set(digests)) == 5
    assert population.digest(built()) == digests[0]


def test_the_digest_is_of_what_the_devices_can_do():
    one = built()
    owned = one.devices
    online = OnlineIntervals(np.array([0, 1]), np.array([1.0]), np.array([2.0]), np.array([9.0]))
    traced = replace(owned, online=online, trace_of=np.zeros(4, np.int64))
    others = [
        *(replace(owned, figures={**owned.figures, name: owned.figures[name] + 0.5}) for name in FIGURES[:4]),
        replace(owned, keep_ratios=owned.keep_ratios / 2),
        replace(owned, tiers=("slow", "faster")),
        traced,
        replace(traced, trace_of=np.ones(4, np.int64)),
        *(
            replace(traced, online=replace(online, **{name: np.array([3.0])}))
            for name in ("starts", "ends", "periods")
        ),
    ]
    digests = {population.digest(Population(other, one.train, one.heldout)) for other in (owned, *others)}
    assert len(digests) == 1 + len(others)
