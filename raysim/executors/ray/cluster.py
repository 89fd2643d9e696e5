"""Join a Ray cluster, or start a local one."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from raysim.core import plugins
from raysim.core.errors import SettingError
from raysim.core.log import info

QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
RESTARTS = 3
"""How often a process that died is started again; its task is repeated, since tasks are pure."""


def connect(num_cpus: int | None, address: str | None, dashboard_host: str | None = None) -> None:
    """Join the Ray at an address, or start a local one, which has a token of its own.

    Args:
        num_cpus: CPUs of a local Ray; none = those of this machine.
        address: A cluster's; none or `local` = a local Ray.
        dashboard_host: Where a local Ray's dashboard listens; none = it has none.

    Raises:
        SettingError: If there is none at the address, or it has a dashboard already.
    """
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _start(num_cpus, address, dashboard_host)
        finally:
            signal.signal(signal.SIGTERM, on_termination)  # Ray installs one that aborts the process
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        signal.raise_signal(signal.SIGTERM)
        raise
    ray._private.worker._worker_logs_enabled = False  # or Ray tells of lost actors on standard output


def _start(num_cpus: int | None, address: str | None, dashboard_host: str | None) -> None:
    if address and address != "local":
        if dashboard_host:
            raise SettingError(
                f"executor.dashboard_host={dashboard_host!r} has no effect on the cluster at {address!r}, whose "
                "dashboard is there or not; allowed: null"
            )
        _join(address)
    else:
        count = num_cpus or len(os.sched_getaffinity(0))
        shown: dict[str, Any] = {"include_dashboard": bool(dashboard_host)}
        shown |= {"dashboard_host": dashboard_host} if dashboard_host else {}
        context = ray.init(address="local", num_cpus=count, **shown, **QUIET)
        keep_private()
        if dashboard_host:
            info(f"dashboard: http://{context.dashboard_url}")


def _join(address: str) -> None:
    use_one_where_asked(address)
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = f"{error}; {WAY_IN}"
        raise SettingError(f"executor.address={address!r} cannot be reached: {reason}") from None


def num_workers(wanted: int | None) -> int:
    """Return how many one-CPU actors or tasks to run at a time.

    Raises:
        SettingError: If the cluster has not as many CPUs.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    count = wanted or max(1, cpus)
    if count > cpus:
        raise SettingError(
            f"executor.num_actors={count} is more than the cluster's {cpus} CPUs; allowed: 1 to {cpus}"
        )
    return count


def let_modules_travel() -> None:
    """Send the code of users' own modules along with what refers to them."""
    for module in plugins.users_modules():
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]


TOKEN_FILE = Path(".ray") / "auth_token"
"""Where Ray keeps its token, under the user's home."""
WAY_IN = "Ray looks for it in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
PATIENCE_S = 10.0


def use_one() -> None:
    """Have Ray send the token that is at hand, if any; a mode that is set, `RAY_AUTH_MODE`, stays."""
    if os.environ.get("RAY_AUTH_MODE") is None and _is_at_hand():
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray has read the mode when it was imported


def use_one_where_asked(address: str) -> None:
    """Have Ray send the token to a cluster that asks for one; by itself it sends none to an address that is named.

    To a cluster without tokens none may be sent: its actors could not answer a process that wants one of them.

    Raises:
        SettingError: If it asks for one, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE") is not None or not _is_asked(address):
        return
    if not _is_at_hand():
        raise SettingError(f"executor.address={address!r} asks for a token: {WAY_IN}")
    use_one()


def _is_at_hand() -> bool:
    """Whether there is a token where Ray looks for one; Ray's own answer would have it keep and demand that token."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / TOKEN_FILE).is_file()


def _is_asked(address: str) -> bool:
    if "://" in address or ":" not in address:
        return False  # Ray's own names, as auto
    with grpc.insecure_channel(address) as channel:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            request = gcs_service_pb2.GetClusterIdRequest()  # type: ignore[attr-defined]
            service.GetClusterId(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def keep_private() -> None:
    """Take a token's file from all but its owner; Ray writes it readable for everybody on the machine."""
    file = Path.home() / TOKEN_FILE
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)
