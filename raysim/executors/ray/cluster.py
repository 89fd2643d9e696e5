"""Join a Ray cluster, or start a local one."""

import logging
import os
from typing import Any

import ray

from raysim.core import plugins
from raysim.core.errors import SettingError
from raysim.core.log import info
from raysim.core.signals import keep_sigterm_handler
from raysim.executors.ray import private_api, tokens

QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


def connect(num_cpus: int | None, address: str | None, dashboard_host: str | None = None) -> dict[str, Any]:
    """Join the Ray cluster at an address, or start a local one, which has a token of its own.

    Args:
        num_cpus: Number of CPUs of a local Ray; None: those of this machine.
        address: Address of a cluster; None or `local`: a local Ray.
        dashboard_host: Host name on which a local Ray's dashboard listens; None: no dashboard.

    Returns:
        The facts that Ray reports about the session, such as `session_dir` and `webui_url`.

    Raises:
        SettingError: If there is no cluster at the address, or if it has a dashboard already.
    """
    with keep_sigterm_handler():  # Ray installs one that aborts the process
        context = _start(num_cpus, address, dashboard_host)
    private_api.silence_standard_output()
    return dict(context.address_info)


def _start(num_cpus: int | None, address: str | None, dashboard_host: str | None) -> Any:
    if address and address != "local":
        if dashboard_host:
            raise SettingError(
                f"executor.dashboard_host={dashboard_host!r} has no effect on the running cluster at {address!r}, "
                "whose dashboard is set when it is started; allowed: null"
            )
        return _join(address)
    dashboard: dict[str, Any] = {"include_dashboard": bool(dashboard_host)}
    dashboard |= {"dashboard_host": dashboard_host} if dashboard_host else {}
    with private_api.on_loopback():
        context = ray.init(
            address="local",
            num_cpus=num_cpus or len(os.sched_getaffinity(0)),
            _system_config={"enable_metrics_collection": False},
            **dashboard,
            **QUIET,
        )
    tokens.protect_token_file()
    if dashboard_host:
        info(f"dashboard: http://{context.dashboard_url}")
    return context


def _join(address: str) -> Any:
    tokens.send_token_if_demanded(address)
    try:
        return ray.init(address=address, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = f"{error}; {tokens.WHERE_RAY_LOOKS}"
        raise SettingError(f"executor.address={address!r} cannot be reached: {reason}") from None


def num_at_once(wanted: int | None) -> int:
    """Return how many one-CPU actors or tasks to run at a time; None: one per CPU.

    Raises:
        SettingError: If the cluster has fewer CPUs.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    count = wanted or max(1, cpus)
    if count > cpus:
        raise SettingError(
            f"executor.num_actors={count} is more than the cluster's {cpus} CPUs; allowed: 1 to {cpus}"
        )
    return count


def pickle_users_modules() -> None:
    """Have Ray send the code of users' own modules with every object that refers to them."""
    for module in plugins.users_modules():
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
