"""No server of raysim listens beyond this machine, a local Ray requires its token, and no user's pickle is run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raysim.core.errors import SettingError
from raysim.data import datasets
from raysim.models import weights
from tests.conftest import ROOT
from tests.heads import environment

LOCAL = """
import json, os, urllib.error, urllib.request
from pathlib import Path
import ray
from raysim.executors.ray import tokens
from raysim.executors.ray.cluster import connect

session = connect(1, None, {host!r})
context = ray.get_runtime_context()
url = session["webui_url"]
try:
    status = url and urllib.request.urlopen(f"http://{{url}}/api/jobs/").status
except urllib.error.HTTPError as error:
    status = error.code
token = Path.home() / ".ray" / "auth_token"
print(json.dumps([tokens.is_demanded(context.gcs_address), url, status, oct(token.stat().st_mode & 0o777)]))
ray.shutdown()
"""


class Running:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_a_local_ray_wants_a_token_and_shows_a_dashboard_only_where_asked(tmp_path, host) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCAL.format(host=host)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked, url, status, mode = json.loads(done.stdout.splitlines()[-1])
    assert asked
    assert mode == "0o600"
    assert (tmp_path / ".ray" / "auth_token").read_text() not in done.stdout + done.stderr
    if host is None:
        assert not url
    else:
        assert url.startswith("127.0.0.1:")
        assert status == 401
        assert f"dashboard: http://{url}" in done.stderr


def test_mlflows_pages_listen_on_this_machine_alone() -> None:
    shown = subprocess.run(["make", "--dry-run", "ui"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "mlflow ui --host 127.0.0.1 " in shown


@pytest.mark.parametrize("name", ["a.pt", "a.pth"])
def test_weights_run_no_code(tmp_path, name) -> None:
    mark = tmp_path / "run"
    torch.save({"weight": Running(mark)}, tmp_path / name)
    with pytest.raises(SettingError, match="cannot be read as a state dict"):
        weights.load_into(torch.nn.Linear(1, 1), str(tmp_path / name), "mlp", 10)
    assert not mark.exists()
    torch.load(tmp_path / name, weights_only=False)  # as it would have been
    assert mark.exists()


@pytest.mark.parametrize(
    ("data", "place"), [("cifar10", "cifar-10-batches-py/data_batch_1"), ("cifar100", "cifar-100-python/train")]
)
def test_a_pickle_in_the_place_of_a_known_data_set_is_not_read(tmp_path, data, place) -> None:
    """Torchvision reads pickles of CIFAR, but only those whose digests it knows."""
    mark, file = tmp_path / "run", tmp_path / place
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(Running(mark)))
    with pytest.raises(SettingError, match="cannot be read"):
        datasets.load(data, str(tmp_path), False, None, 0)
    assert not mark.exists()
