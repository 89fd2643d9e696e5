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
        "http://me@corp.com:hush@host", "http://me:5000/hush@host", "http://h/?auth=hush", "http://h/?jwt=hush",
        "http://h/?credential=hush", "http://h/?pass%77ord=hush", "http://h/#token=hush", "http://h/a;pwd=hush",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPassword%3Dhush", "http://h/?a=x%2526sig%253Dhush",
        "http://h/?api-key=hush&x=1", "http://h/?x_authorization=hush", "Server=h;Password=hush", "gs://b?bearer=hush",
        "https://h/hf_hu5Hhu5Hhu5Hhu5Hhu5H/x", "https://AKIAhu5H@h/".replace("hu5H", "SHHUSHHUSHHUS"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_whole(uri: str) -> None:
    assert "hu" not in uris.masked(uri).lower().replace("...", "")
    assert "sh@" not in uris.masked(uri)
    with pytest.raises(SettingError, match=r"output=.* is not allowed, since URIs are written down: .*allowed: none"):
        uris.check("output", uri, "none")


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////runs/my store.db", "postgresql://me@host/runs?host=/tmp&host=other", "http://[::1]:5000/x",
        "https://me@host:5000/x", "s3://bucket/runs@v1", "sqlite:////runs/a:b@c.db", "http://h/?author=me&authenticator=x",
        "runs/key=3/x", "s3://b/runs?endpoint_override=store:9000&scheme=http", "http://host:5000/#/experiments/1",
        "s3://bucket/runs?region=eu-west-1", "postgresql://me@host/runs?sslkey=/keys/client.pem", "databricks://profile",
    ],
)  # fmt: skip
def test_other_uris_stay_as_they_are(uri: str) -> None:
    assert uris.masked(uri) == uri
    uris.check("output", uri, "nothing")
