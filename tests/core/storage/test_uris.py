"""Secrets in URIs are found however they are written, and nothing else is."""

import doctest

import pytest

from raysim.core.errors import SettingError
from raysim.core.storage import uris


def test_the_examples_hold() -> None:
    assert doctest.testmod(uris).failed == 0


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hu@sh@host/runs", "postgresql://me:hu?s#h@host:5432/runs", "postgresql://:hush@host/runs",
        "mysql+pymysql://me@host/runs?SSL_KEY_PASSWORD=hush", "https://me:hush@[::1]:5000/x",
    ],
)  # fmt: skip
def test_a_secret_is_hidden_whole(uri: str) -> None:
    assert "hu" not in uris.masked(uri)
    assert "sh@" not in uris.masked(uri)
    with pytest.raises(SettingError, match=r"output=.* is not allowed, since URIs are written down: .*allowed: none"):
        uris.check("output", uri, "none")


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////runs/my store.db", "postgresql://me@host/runs?host=/tmp&host=other", "http://[::1]:5000/x",
        "s3://bucket/runs?region=eu-west-1", "postgresql://me@host/runs?sslkey=/keys/client.pem", "databricks://profile",
    ],
)  # fmt: skip
def test_other_uris_stay_as_they_are(uri: str) -> None:
    assert uris.masked(uri) == uri
    uris.check("output", uri, "nothing")
