"""Ray's own errors, made without a cluster, and the meaning of each."""

import pytest
import ray
from ray import exceptions

from raysim.core.errors import RunFailedError, SettingError
from raysim.executors.ray.failure_policy import STORE_IS_FULL, Failure, Kind
from raysim.executors.ray.failures import failure_of, loss_of, run_error_of


def raised(cause: Exception) -> exceptions.RayTaskError:
    """The error that `ray.get` raises where a method of an actor has raised one."""
    return exceptions.RayTaskError("train", "Traceback ...", cause)


LOST = [
    (exceptions.ActorDiedError(), Kind.PROCESS_ENDED),
    (exceptions.WorkerCrashedError(), Kind.PROCESS_ENDED),
    (exceptions.RayActorError(error_msg="The actor died because its node has died."), Kind.MACHINE_LOST),
    (exceptions.NodeDiedError("gone"), Kind.MACHINE_LOST),
    (exceptions.OutOfMemoryError("too much"), Kind.OUT_OF_MEMORY),
    (exceptions.ActorUnavailableError("away", None), Kind.UNREACHABLE),
    (exceptions.ObjectLostError("00", "", ""), Kind.OBJECT_LOST),
    (raised(exceptions.OwnerDiedError("00", "", "")), Kind.OBJECT_LOST),
]


@pytest.mark.parametrize(("error", "kind"), LOST, ids=lambda value: type(value).__name__)
def test_a_loss_is_classified(error, kind):
    assert loss_of(error) == kind
    found = failure_of(error, 5)
    assert (found.kind, found.round, found.client) == (kind, 5, -1)
    assert found.details == f"{error}\n"


@pytest.mark.parametrize("error", [exceptions.ObjectStoreFullError(), exceptions.OutOfDiskError()])
def test_a_full_store_is_not_a_loss(error):
    assert failure_of(error, 5).kind == Kind.STORE_FULL
    assert run_error_of(error, 5).cause == STORE_IS_FULL


def test_an_error_of_users_code_is_quoted():
    error = raised(ValueError("too many rows"))
    assert failure_of(error, 5) == Failure(Kind.RAISED, 5, -1, "ValueError: too many rows", f"{error}\n")


def test_an_error_of_a_client_keeps_its_round_client_and_details():
    error = raised(RunFailedError(4, 2, "training diverged", "what it printed\n"))
    assert failure_of(error, 5) == Failure(Kind.RAISED, 4, 2, "training diverged", "what it printed\n")
    assert str(run_error_of(error, 5)) == "round 4, client 2: training diverged"


def test_a_bad_setting_has_no_traceback():
    assert failure_of(raised(SettingError("torch 1.0 on there")), 5) == Failure(
        Kind.RAISED, 5, cause="torch 1.0 on there"
    )


def test_other_errors_of_ray_end_the_run_with_their_names():
    assert run_error_of(ray.exceptions.RayError("odd"), 0).cause == "RayError: odd"


def test_a_driver_actor_is_lost_whatever_ray_says():
    assert loss_of(ray.exceptions.RayError("odd")) == Kind.PROCESS_ENDED
