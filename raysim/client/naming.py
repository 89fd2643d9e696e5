"""Name the round and the client in which something fails."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from raysim.core.errors import RunFailedError, SettingError


@contextmanager
def named(round: int, client: int) -> Iterator[None]:
    """Turn any error into a RunFailedError that names round and client."""
    try:
        yield
    except RunFailedError:
        raise
    except SettingError as error:
        raise RunFailedError(round, client, str(error)) from None
    except OverflowError as error:
        raise RunFailedError(round, client, f"training diverged: {error}") from None
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise RunFailedError(round, client, cause, traceback.format_exc()) from None
