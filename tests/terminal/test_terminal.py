"""A run on a terminal: its output, and the effect of Ctrl-C, in this process and on Ray."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from raysim.simulation import checkpoint
from tests.conftest import CONFIGS, ROOT, TINY
from tests.processes import mark, ray_daemons_of
from tests.stores import status_of, store_in
from tests.terminals import CTRL_C, Terminal

ROUNDS = 12
SOMEBODY = r"round 1, clients? [\d, ]+"
NET = """
import os, time, warnings
from torch import nn

class Worried(nn.Module):
    def forward(self, inputs):
        time.sleep(float(os.environ.get("NAP_S", "0")))
        if self.training and len(inputs) > 4:  # in training, not where the model is traced and counted
            warnings.warn("inputs look odd")
        return inputs

def build(input_shape, num_classes):
    open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "building"), "w").close()
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 16), nn.ReLU(), Worried(),
                         nn.Linear(16, num_classes))
"""
SETTINGS = [
    *TINY, f"rounds={ROUNDS}", "checkpoint.every=100", "data.max_train_examples=120", "evaluation.max_examples=50",
    "model.name=worried_net:build", "model.options={}",
]  # fmt: skip
IN_PROCESS = pytest.param(("executor.kind=in-process",), id="in-process")
ON_RAY = ("executor.kind=ray", "executor.num_actors=2")


def run_of(folder: Path, *overrides: str) -> list[str]:
    store = f"tracking.uri={store_in(folder)}"
    given = [part for each in (*SETTINGS, store, *overrides) for part in ("--set", each)]
    return ["run", str(CONFIGS / "digits.yaml"), *given, "--output", str(folder / "out")]


def environment(nap_s: float = 0.0) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NAP_S": str(nap_s), "MLFLOW_DISABLE_TELEMETRY": "true"}


def on_terminal(folder: Path, arguments: list[str], nap_s: float = 0.0, **more: str) -> Terminal:
    command = [sys.executable, "-m", "raysim", *arguments]
    return Terminal(command, folder, folder / "stdout", environment(nap_s) | mark(folder) | more)


def piped(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raysim", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def at_work(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "worried_net.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the parameters of a run that nobody stops; quiet, so that its warnings alone are said."""
    folder = at_work(tmp_path_factory.mktemp("whole"))
    done = piped(folder, [*run_of(folder), "--quiet", "--json"])
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "inputs look odd" in line]
    assert len(warned) == 1  # Python says it once for each place in the code
    assert re.fullmatch(rf"{SOMEBODY}: UserWarning: inputs look odd \(worried_net.py:\d+\)", warned[0])
    assert done.stderr.splitlines() == warned
    return json.loads(done.stdout)["params_sha256"]


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", [IN_PROCESS, pytest.param(ON_RAY, id="ray", marks=(pytest.mark.ray, pytest.mark.long))]
)
def test_ctrl_c_stops_after_the_round_then_at_once_and_the_run_goes_on_to_the_same_bits(
    kind: tuple[str, ...], whole: str, tmp_path: Path
) -> None:
    folder = at_work(tmp_path)
    first = on_terminal(folder, run_of(folder, *kind), nap_s=0.15)
    first.until(rf"[2-9]/{ROUNDS}")
    assert ray_daemons_of(folder) == (["gcs_server", "raylet"] if kind == ON_RAY else [])
    first.press(CTRL_C)
    first.until("Ctrl-C again stops at once")
    assert first.end() == 130, first.shown[-3000:]
    assert ray_daemons_of(folder) == []
    shown = plain(first.shown)
    stopped = int(re.search(r"stopping after round (\d+); Ctrl-C again stops at once", shown)[1])
    assert f"raysim: stopped after round {stopped}; `raysim resume {folder}/out` continues" in " ".join(shown.split())
    assert re.search(rf"{SOMEBODY}: UserWarning: inputs look odd", shown)
    for part in ("accuracy 0.", "simulated ", "elapsed 0:", "tier", "counted", "median s"):
        assert part in shown
    assert "Traceback" not in shown
    assert first.output == ""
    assert status_of(folder) == "KILLED"
    assert [checkpoint.round_of(saved) for saved in checkpoint.saved_in(folder / "out" / "checkpoints")] == [stopped]
    assert pq.read_table(folder / "out" / "rounds.parquet")["round"].to_pylist() == [*range(1, stopped + 1)]

    second = on_terminal(folder, ["resume", str(folder / "out")], nap_s=1.5)
    second.until(f"{stopped + 1}/{ROUNDS}")
    second.press(CTRL_C)
    second.until("Ctrl-C again stops at once")
    second.press(CTRL_C)
    assert second.end() == 130, second.shown[-3000:]
    assert "raysim: interrupted" in second.shown
    assert "Traceback" not in second.shown
    assert ray_daemons_of(folder) == []
    assert status_of(folder) == "KILLED"
    assert [checkpoint.round_of(saved) for saved in checkpoint.saved_in(folder / "out" / "checkpoints")] == [stopped]

    here = ["--set", "executor.kind=in-process", "--set", "executor.num_actors=null"]
    rest = piped(folder, ["resume", str(folder / "out"), "--json", *here])
    assert rest.returncode == 0, rest.stderr
    assert f"resuming after round {stopped} of {ROUNDS}" in rest.stderr
    assert json.loads(rest.stdout)["params_sha256"] == whole
    assert status_of(folder) == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [IN_PROCESS, pytest.param(ON_RAY, id="ray", marks=pytest.mark.ray)])
def test_ctrl_c_before_the_first_round_stops_at_once(kind: tuple[str, ...], tmp_path: Path) -> None:
    folder = at_work(tmp_path)
    starting = on_terminal(folder, run_of(folder, *kind), nap_s=5.0)  # building the model and tracing it takes long
    while not (folder / "building").exists():
        assert starting.process.poll() is None, starting.shown
        time.sleep(0.05)
    starting.press(CTRL_C)
    assert starting.end(60) == 130
    assert "raysim: interrupted" in starting.shown
    assert not list((folder / "out").glob("rounds/*"))


@pytest.mark.long
def test_ctrl_c_and_sigterm_after_the_last_round_leave_a_run_that_resume_finishes(whole: str, tmp_path: Path) -> None:
    """While the final model is logged: by then, all that is left is MLflow's."""
    folder = at_work(tmp_path)
    left = f"raysim: interrupted after the last round; all results are in {folder}/out, and `raysim resume"
    first = on_terminal(folder, run_of(folder))
    first.until("logging the final model to MLflow")
    first.press(CTRL_C)
    assert first.end() == 130, first.shown[-3000:]
    assert left in " ".join(plain(first.shown).split())
    assert status_of(folder) == "KILLED"

    second = on_terminal(folder, ["resume", str(folder / "out")])
    second.until("logging the final model to MLflow")
    second.process.terminate()
    assert second.end() == 143, second.shown[-3000:]
    assert left in " ".join(plain(second.shown).split())

    rest = piped(folder, ["resume", str(folder / "out"), "--json"])
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout)["params_sha256"] == whole
    assert (folder / "out" / "report.html").is_file()
    assert status_of(folder) == "FINISHED"
    assert len(MlflowClient(f"sqlite:///{folder}/mlflow.db").search_model_versions("name = 'digits'")) == 1


@pytest.mark.long
def test_ctrl_c_under_make_run_stops_after_the_round_too(tmp_path: Path) -> None:
    folder = at_work(tmp_path)
    bin = Path(sys.executable).parent
    if not (bin / "raysim").exists():
        pytest.skip("raysim is not installed beside this Python")
    arguments = " ".join(f"'{part}'" for part in run_of(folder)[2:])
    command = ["make", "-C", str(ROOT), "-o", ".venv/.ready", f"BIN={bin}", "run", f"ARGS={arguments}"]
    terminal = Terminal(command, folder, folder / "stdout", environment(0.15) | {"PYTHONPATH": f"{ROOT}:{folder}"})
    terminal.until(rf"[2-9]/{ROUNDS}")
    terminal.press(CTRL_C)
    code = terminal.end()
    assert code in (130, -2, 2)
    assert re.search(r"raysim: stopped after round \d+", plain(terminal.shown))
    assert status_of(folder) == "KILLED"


@pytest.mark.long
def test_what_is_no_terminal_gets_no_escape_codes_and_a_dumb_one_plain_lines(tmp_path: Path) -> None:
    folder = at_work(tmp_path)
    few = ["--set", "rounds=3"]
    dumb = on_terminal(folder, [*run_of(folder), *few], TERM="dumb")
    assert dumb.end() == 0
    assert "\x1b" not in dumb.shown
    assert [line.split()[1] for line in dumb.shown.splitlines() if line.startswith("round ")][-3:] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    assert "global test accuracy" in dumb.output

    (folder / "uncoloured").mkdir()
    at_work(folder / "uncoloured")
    uncoloured = on_terminal(folder / "uncoloured", [*run_of(folder / "uncoloured"), *few], NO_COLOR="1")
    assert uncoloured.end() == 0
    assert "3/3" in uncoloured.shown
    colours = re.findall(r"\x1b\[[0-9;]*m", uncoloured.shown)
    assert not [each for each in colours if re.search(r"[\[;](3|4|9)[0-9]", each)]
