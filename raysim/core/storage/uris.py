"""Refuse and hide secrets in URIs, which are written to files, to MLflow and into messages.

SQLAlchemy's `make_url` is not used: it ends a password at the first `@` and shows the rest, and databases are only
one kind of the URIs here.
"""

import re

from raysim.core.errors import SettingError

PASSWORD = re.compile(r"(?<=://)([^:/?#@]*):(?!\d+(?:[/?#]|$))(.*)(?=@)")
"""User and password of a URI; the password ends at the last `@`, since it may hold unescaped ones."""
SECRET = re.compile(
    r"([?&;][^=&;]*(?:secret|passw|token|signature|(?<!ssl)key)[^=&;]*=|[?&;](?:sig|pass)=|pwd(?:=|%3d))[^&;]*",
    re.IGNORECASE,
)
"""Options with secret values; `sslkey` names a file."""


def check(setting: str, uri: str, allowed: str) -> None:
    """Refuse a URI that holds a secret.

    Args:
        setting: The setting that holds the URI; empty: unknown.
        uri: The URI.
        allowed: Where the secret belongs instead.

    Raises:
        SettingError: If the URI holds a secret; the message does not show it.
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
