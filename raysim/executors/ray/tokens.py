"""Send a token to a Ray cluster that demands one, and keep the token's file private."""

import os
from pathlib import Path

from raysim.core.errors import SettingError
from raysim.executors.ray import private_api

TOKEN_FILE = Path(".ray") / "auth_token"
"""Where Ray keeps its token, below the user's home."""
WHERE_RAY_LOOKS = "Ray looks for it in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
TIMEOUT_S = 10.0


def send_token() -> None:
    """Have Ray send the user's token, if there is one; a mode that is set, `RAY_AUTH_MODE`, stays."""
    if os.environ.get("RAY_AUTH_MODE") is None and _is_there():
        os.environ["RAY_AUTH_MODE"] = "token"
        private_api.read_auth_mode_again()


def send_token_if_demanded(address: str) -> None:
    """Have Ray send the user's token to a cluster that demands one; by itself it sends none to a named address.

    A token is never sent to a cluster without authentication: its actors could not answer a process that demands one
    of them.

    Raises:
        SettingError: If the cluster demands a token, and there is none.
    """
    if os.environ.get("RAY_AUTH_MODE") is not None or not is_demanded(address):
        return
    if not _is_there():
        raise SettingError(f"executor.address={address!r} requires a token: {WHERE_RAY_LOOKS}")
    send_token()


def is_demanded(address: str) -> bool:
    """Whether the cluster at an address demands a token; False for Ray's own names, such as `auto`."""
    return "://" not in address and ":" in address and private_api.demands_token(address, TIMEOUT_S)


def protect_token_file() -> None:
    """Let only its owner read the token's file; Ray writes it readable for everybody on the machine."""
    file = Path.home() / TOKEN_FILE
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)


def _is_there() -> bool:
    """Whether there is a token where Ray looks for one; Ray's own check would keep and demand that token."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / TOKEN_FILE).is_file()
