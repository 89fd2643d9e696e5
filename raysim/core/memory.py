"""Refuse sizes that this machine's memory cannot hold, before anything is allocated."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from raysim.core.errors import SettingError, reason_of, shortened

CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def total_bytes() -> int:
    """Return the memory of this machine, or of this process if its container or its user has a lower limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return _machine_bytes() if limit == resource.RLIM_INFINITY else min(limit, _machine_bytes())


@cache
def _machine_bytes() -> int:
    import psutil

    limits = [path.read_text().strip() for path in CGROUP if path.is_file()]
    return min(int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdecimal()), 2**63 - 1)


def check_fits(setting: str, value: object, num_bytes: int) -> None:
    """Refuse a size that memory cannot hold.

    Args:
        setting: The name of the setting that decides the size.
        value: Its value.
        num_bytes: The bytes that it needs.

    Raises:
        SettingError: If this machine has less memory.
    """
    total = total_bytes()
    if num_bytes > total:
        raise SettingError(
            f"{setting}={shortened(value)} needs {num_bytes / 1e9:,.4g} GB of memory; allowed: what fits into the "
            f"{total / 1e9:,.4g} GB of this machine"
        )


@contextmanager
def enough_for(what: str, allowed: str) -> Iterator[None]:
    """Turn running out of memory into a refusal.

    Args:
        what: The thing that is made, as the beginning of the message.
        allowed: Settings or values that would need less.

    Raises:
        SettingError: If memory ran out within the context.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_shortage(error):
            raise
        raise SettingError(
            f"{what} needs more memory than there is ({reason_of(error)}); allowed: {allowed}"
        ) from None


def _is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch has no error of its own for that of the machine."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
