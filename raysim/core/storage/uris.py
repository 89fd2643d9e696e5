"""Secrets in URIs, which are written down in files, in MLflow and in messages: they are refused, and not shown."""

import re

from raysim.core.errors import SettingError

PASSWORD = re.compile(r"(?<=://)([^:/?#@]*):(?!\d+(?:[/?#]|$))(.*)(?=@)")
"""User and password of a URI: the password up to its last `@`, as it may hold what should have been escaped."""
SECRET = re.compile(
    r"([?&;][^=&;]*(?:secret|passw|token|signature|(?<!ssl)key)[^=&;]*=|[?&;](?:sig|pass)=|pwd(?:=|%3d))[^&;]*",
    re.IGNORECASE,
)
"""Options whose values are secrets; `sslkey` is a file, and `credential_kind` and the like tell nothing."""


def check(setting: str, uri: str, allowed: str) -> None:
    """Refuse a URI that holds a secret.

    Args:
        setting: What it was given as; empty = not known.
        uri: The URI.
        allowed: Where the secret belongs instead.

    Raises:
        SettingError: If it holds one; the message does not.
    """
    if masked(uri) != uri:
        shown = f"{setting}={masked(uri)!r}" if setting else repr(masked(uri))
        raise SettingError(
            f"{shown} is not allowed, since URIs are written down: it holds a secret; allowed: {allowed}"
        )


def masked(uri: str) -> str:
    """Return a URI with `...` for each of its secrets.

    >>> masked("postgresql://me:my/word@host/runs"), masked("https://me@host:5000/x")
    ('postgresql://me:...@host/runs', 'https://me@host:5000/x')
    >>> masked("abfs://a@b/c?client_id=1&client_secret=2&sig=3")
    'abfs://a@b/c?client_id=1&client_secret=...&sig=...'
    """
    return SECRET.sub(r"\1...", PASSWORD.sub(r"\1:...", uri))
