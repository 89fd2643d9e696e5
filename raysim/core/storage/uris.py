"""Refuse and hide secrets in URIs, which are written to files, to MLflow and into messages.

SQLAlchemy's `make_url` is not used: it ends a password at the first `@` and shows the rest, and databases are only
one kind of the URIs here.
"""

import re
from urllib.parse import unquote_plus

from raysim.core.errors import SettingError

AUTHORITY = re.compile(r"(:/{1,2})(?=[^/])(.*)(?=@)")
"""User and password of a URI: they end at the last `@`, since a password may hold unescaped ones, `/` and `?`.

A path of `pathlib` has one slash where the URI had two.
"""
HOST = re.compile(r"(?:localhost|[^@:/]*\.[^@:/]*|\[[^]]*\]):\d+[/?#]")
"""A host and its port in front of a path that holds an `@`; a user's name has no dot."""
OPTION = re.compile(r"(?:^|(?<=[?&;#]))([^=&;#?/]+=)([^&;#]*)")
NAMES = re.compile(
    r"secret|passw|passphrase|pwd|token|jwt|signature|cred|bearer|api_?key|access_?key|(?<!ssl)key|session_?id"
    r"|(?:^|[^a-z])auth(?:orization)?$|^(?:sig|sas|pass)$",
    re.IGNORECASE,
)
"""Names of options with secret values; `sslkey` names a file."""
IN_TEXT = re.compile(r"\S+:/\S+")
WELL_KNOWN = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{12,}"
    r"|sk-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
"""Tokens known by their form, in any part: of GitHub, GitLab, Hugging Face, Slack, AWS and OpenAI; JWTs."""


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
    return WELL_KNOWN.sub("...", OPTION.sub(_option, AUTHORITY.sub(_authority, uri)))


def masked_in(text: str) -> str:
    """Return a text with `...` for the secrets of the URIs in it.

    >>> masked_in("--address='http://me:hush@host' cannot be reached")
    "--address='http://me:...@host' cannot be reached"
    """
    return IN_TEXT.sub(lambda found: masked(found[0]), text)


def _authority(found: re.Match[str]) -> str:
    start, user_and_password = found.groups()
    user, colon, _ = user_and_password.partition(":")
    return f"{start}{user}:..." if colon and not HOST.match(user_and_password) else found[0]


def _option(found: re.Match[str]) -> str:
    name, value = found.groups()
    decoded = _decoded(value)
    is_secret = NAMES.search(_decoded(name)[:-1]) or (decoded != value and masked(decoded) != decoded)
    return f"{name}..." if is_secret else found[0]


def _decoded(text: str) -> str:
    """Return a text without per cent escapes, also where they are escaped themselves."""
    while (decoded := unquote_plus(text)) != text:
        text = decoded
    return text
