"""Ray's authentication token: used where there is one, readable by its owner only, never shown."""

import os
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

TOKEN_FILE = Path(".ray") / "auth_token"
"""Where Ray keeps its token, under the user's home."""
WAY_IN = "a cluster with a token wants it in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"


def use_one_where_there_is() -> None:
    """Have Ray send a token that is at hand: by itself it sends none to an address that is named.

    A cluster without tokens does not look at it. A mode that is set, `RAY_AUTH_MODE`, stays.
    """
    if os.environ.get("RAY_AUTH_MODE") is None and _is_at_hand():
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray has read the mode when it was imported


def _is_at_hand() -> bool:
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def keep_private() -> None:
    """Take a token's file from all but its owner; Ray writes it readable for everybody on the machine."""
    file = Path.home() / TOKEN_FILE
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)
