"""Decisions after each kind of failure, made without Ray."""

import pytest

from raysim.executors.ray.failure_policy import (
    REASONS,
    STORE_IS_FULL,
    Activity,
    Attempt,
    Failure,
    FailurePolicy,
    Kind,
    Raise,
    Retry,
    Split,
    decide,
)

CHUNK, PACK, SINGLE = (34, 4, 19), (1, 5), (3,)
LATE = "did not answer within executor.client_timeout_s=60 s per client"


def after(kind: Kind, attempt: Attempt, **of_failure):
    return decide(Failure(kind, 7, **of_failure), attempt)


def test_a_chunk_is_repeated_whole_then_client_by_client_then_ends_the_run():
    lost = [after(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, CHUNK, losses=losses)) for losses in range(4)]
    incident = "a client actor was lost (its process ended); clients 4, 19, 34 are trained again"
    assert lost[:3] == [Retry(f"{incident} (1 of 3)"), Split(f"{incident} (2 of 3)"), Split(f"{incident} (3 of 3)")]
    assert isinstance(lost[3], Raise)


def test_a_client_that_ends_its_actor_alone_is_named():
    attempts = [Attempt(Activity.TRAIN, SINGLE, losses=losses) for losses in range(4)]
    *retries, end = [after(Kind.PROCESS_ENDED, attempt, details="trace\n") for attempt in attempts]
    assert all(isinstance(each, Retry) for each in retries)
    assert "client 3 is trained again (2 of 3)" in retries[1].incident
    cause = "its client actor was lost 4 times, the last time while it trained client 3 alone: its process ended"
    assert end == Raise(7, 3, cause, "trace\n")
    assert str(end.error) == f"round 7, client 3: {cause}"
    assert end.error.details == "trace\n"


def test_a_pack_that_is_lost_to_the_end_names_all_of_its_clients():
    assert isinstance(after(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, PACK, losses=1)), Split)
    end = after(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, PACK, losses=3))
    assert (end.client, "trained clients 1, 5 alone" in end.cause) == (-1, True)


@pytest.mark.parametrize("kind", REASONS)
def test_every_loss_is_repeated_and_explained(kind):
    found = after(kind, Attempt(Activity.TRAIN, CHUNK))
    assert isinstance(found, Retry)
    assert f"a client actor was lost ({REASONS[kind]})" in found.incident


@pytest.mark.parametrize(
    ("work", "again"),
    [(Activity.SCORE, "rows are scored again"), (Activity.ESTIMATE, "running statistics are estimated again")],
)
def test_work_without_clients_is_repeated_whole(work, again):
    lost = [after(Kind.MACHINE_LOST, Attempt(work, losses=losses)) for losses in range(4)]
    assert lost[2] == Retry(f"a client actor was lost (its machine was lost); {again} (3 of 3)")
    cause = f"its client actor was lost 4 times, the last time in {work.value}: its machine was lost"
    assert lost[3] == Raise(7, -1, cause)


def test_a_chunk_that_hangs_is_tried_again_one_by_one():
    found = after(Kind.TIMED_OUT, Attempt(Activity.TRAIN, CHUNK, timeout_s=60))
    assert found == Split(f"clients 4, 19, 34 {LATE}; clients 4, 19, 34 are trained again, one by one")


def test_a_client_that_hangs_is_tried_once_more_and_then_named():
    first, second = (
        after(Kind.TIMED_OUT, Attempt(Activity.TRAIN, SINGLE, timeouts=timeouts, timeout_s=60)) for timeouts in (0, 1)
    )
    assert first == Retry(f"client 3 {LATE}; client 3 is trained again")
    assert second == Raise(7, 3, f"client 3 {LATE}, twice")


def test_losses_and_timeouts_are_counted_apart():
    assert isinstance(after(Kind.TIMED_OUT, Attempt(Activity.TRAIN, SINGLE, losses=3)), Retry)
    assert isinstance(after(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, SINGLE, timeouts=1)), Retry)


def test_actors_may_each_be_lost_once_before_their_first_call():
    lost = [after(Kind.OUT_OF_MEMORY, Attempt(Activity.START, losses=losses, num_actors=2)) for losses in range(6)]
    incident = "a client actor was lost (its machine ran out of memory) before its first call; another was started"
    assert lost[:5] == [Retry(incident)] * 5
    cause = "client actors were lost 6 times before their first call: its machine ran out of memory"
    assert lost[5] == Raise(7, -1, cause)


def test_actors_that_never_start_end_the_run():
    cause = "no client actor could be started within 600 s after the last one was lost"
    assert after(Kind.NOT_STARTED, Attempt(Activity.START)) == Raise(7, -1, cause)


@pytest.mark.parametrize("work", [Activity.TRAIN, Activity.START, Activity.ROUNDS])
def test_an_error_of_the_runs_own_code_ends_the_run_at_once(work):
    found = after(Kind.RAISED, Attempt(work, CHUNK), client=4, cause="ValueError: too many rows", details="trace\n")
    assert found == Raise(7, 4, "ValueError: too many rows", "trace\n")


def test_a_full_object_store_ends_the_run_with_advice():
    found = after(Kind.STORE_FULL, Attempt(Activity.SCORE), cause="ObjectStoreFullError: no space", details="trace\n")
    assert found == Raise(7, -1, STORE_IS_FULL, "trace\n")


def test_the_driver_actor_is_replaced_three_times():
    lost = [after(Kind.UNREACHABLE, Attempt(Activity.ROUNDS, losses=losses, num_rounds=12)) for losses in range(4)]
    assert lost[:3] == [Retry("the driver actor was lost: resuming after round 6 of 12 (it cannot be reached)")] * 3
    assert lost[3] == Raise(7, -1, "the driver actor was lost 4 times: it cannot be reached")


def test_the_limits_are_those_of_the_policy():
    policy = FailurePolicy(max_losses=1, max_losses_together=0, max_timeouts=2, start_timeout_s=5)

    def decided(kind: Kind, attempt: Attempt):
        return decide(Failure(kind), attempt, policy)

    assert isinstance(decided(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, CHUNK)), Split)
    assert isinstance(decided(Kind.PROCESS_ENDED, Attempt(Activity.TRAIN, CHUNK, losses=1)), Raise)
    assert isinstance(decided(Kind.PROCESS_ENDED, Attempt(Activity.ROUNDS, losses=1)), Raise)
    assert isinstance(decided(Kind.TIMED_OUT, Attempt(Activity.TRAIN, SINGLE, timeouts=1)), Retry)
    assert decided(Kind.TIMED_OUT, Attempt(Activity.TRAIN, SINGLE, timeouts=2)).cause.endswith(", 3 times")
    assert "within 5 s" in decided(Kind.NOT_STARTED, Attempt(Activity.START)).cause


def test_every_kind_of_failure_has_a_decision():
    for kind in Kind:
        for work in Activity:
            clients = CHUNK if work is Activity.TRAIN else ()
            assert isinstance(after(kind, Attempt(work, clients)), Retry | Split | Raise)
