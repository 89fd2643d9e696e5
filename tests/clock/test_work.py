"""Work and costs of clients when they stop; all numbers by hand."""

import numpy as np
import pytest

from raysim.clock.outcomes import BATTERY, COUNTED, DROPPED, LATE, SURPLUS, UNFINISHED
from raysim.clock.work import Work, by_version, completed_share, joined_work, stopped, unfinished
from tests.clocked import work_of

PHASES = (2.0, 5.0, 4.0)


def after(*seconds: float) -> Work:
    """Clients of 2 s download, 5 s training and 4 s upload that stop after so long."""
    return stopped(work_of([PHASES] * len(seconds)), np.array(seconds), DROPPED)


@pytest.mark.parametrize(
    ("second", "shares", "spent"),  # bytes down, bytes up, FLOPs, activation bytes, steps
    [
        (0.0, (0.0, 0.0, 0.0), (0, 0, 0, 0, 0)),
        (0.5, (0.25, 0.0, 0.0), (250, 0, 0, 0, 0)),
        (2.0, (1.0, 0.0, 0.0), (1000, 0, 0, 0, 0)),
        (3.25, (1.0, 0.25, 0.0), (1000, 0, 2500, 25, 2)),  # 2.5 steps are 2
        (7.0, (1.0, 1.0, 0.0), (1000, 0, 10_000, 100, 10)),
        (8.0, (1.0, 1.0, 0.25), (1000, 125, 10_000, 100, 10)),
        (11.0, (1.0, 1.0, 1.0), (1000, 500, 10_000, 100, 10)),
    ],
)
def test_what_is_done_of_each_phase_when_a_client_stops(second, shares, spent):
    work = after(second)
    done = work.completed_shares
    assert (done.download_s[0], done.compute_s[0], done.upload_s[0]) == shares
    load = work.spent
    assert (
        load.down_bytes[0],
        load.up_bytes[0],
        load.train_flops[0],
        load.activation_bytes[0],
        load.steps[0],
    ) == spent


def test_work_stops_only_where_it_would_have_lasted_longer():
    work = after(10.999, 11.0, 12.0, np.inf)
    assert work.outcomes.tolist() == [DROPPED, COUNTED, COUNTED, COUNTED]
    assert work.duration_s.tolist() == [10.999, 11.0, 11.0, 11.0]
    assert stopped(work, np.full(4, 5.0), LATE).outcomes.tolist() == [LATE] * 4


def test_a_client_that_stops_twice_stops_at_the_first_for_the_first_reason():
    first = stopped(after(3.0), np.array([4.0]), BATTERY)
    assert (first.outcomes[0], first.duration_s[0]) == (DROPPED, 3.0)
    second = stopped(after(3.0), np.array([2.0]), BATTERY)
    assert (second.outcomes[0], second.duration_s[0]) == (BATTERY, 2.0)


def test_who_is_done_but_not_needed_has_spent_all_to_the_last_byte():
    """Download + training + upload less download less training is not always upload, in floating point."""
    phases = np.random.default_rng(0).random((2000, 3))
    work = work_of([tuple(row) for row in phases], outcomes=[SURPLUS] * 2000)
    assert ((work.duration_s - phases[:, 0] - phases[:, 1]) < phases[:, 2]).any()
    assert (work.spent.up_bytes == 500).all()
    assert (work.completed_shares.upload_s == 1).all()


def test_a_phase_of_no_seconds_is_done_once_it_is_reached():
    work = stopped(work_of([(1.0, 0.0, 1.0)] * 2), np.array([0.5, 1.5]), DROPPED)
    assert work.completed_shares.compute_s.tolist() == [0.0, 1.0]
    assert work.completed_shares.upload_s.tolist() == [0.0, 0.5]


def test_parts_are_rounded_down_and_the_whole_is_exact():
    whole = np.array([2**53 + 1, 2**53 + 1, 7, 0])
    assert completed_share(whole, np.array([1.0, 0.0, 0.99, 1.0])).tolist() == [2**53 + 1, 0, 6, 0]


def test_what_is_still_at_work_when_the_run_ends_is_unfinished():
    work = work_of([PHASES] * 4, start_s=100.0)
    work = stopped(work, np.array([np.inf, np.inf, 1.0, 6.0]), DROPPED)
    for now, lasts, outcomes in (
        (104.5, [4.5, 4.5, 1.0, 4.5], [UNFINISHED, UNFINISHED, DROPPED, UNFINISHED]),
        (111.0, [11.0, 11.0, 1.0, 6.0], [UNFINISHED, UNFINISHED, DROPPED, DROPPED]),  # arrived and not aggregated
        (100.0 - 1e-12, [0.0, 0.0, 0.0, 0.0], [UNFINISHED] * 4),
    ):
        given_up = unfinished(work, now)
        assert given_up.duration_s.tolist() == lasts
        assert given_up.outcomes.tolist() == outcomes
    assert unfinished(work, 104.5).spent.train_flops.tolist() == [5000, 5000, 0, 5000]


def test_work_is_joined_in_the_order_of_ids_and_of_versions():
    late, early, other = work_of([PHASES], [8], round=3), work_of([(1.0, 1.0, 1.0)], [5], round=3), work_of([PHASES])
    joined = joined_work([late, early])
    assert joined.cohort.clients.tolist() == [5, 8]
    assert joined.duration_s.tolist() == [3.0, 11.0]
    assert [work.cohort.round for work in by_version([late, other, early])] == [1, 3]
    assert by_version([late, other, early])[1].cohort.clients.tolist() == [5, 8]
    assert by_version([]) == ()
    counted = stopped(joined, np.array([2.0, np.inf]), DROPPED).counted
    assert counted.cohort.clients.tolist() == [8]
