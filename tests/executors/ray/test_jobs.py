"""Runs as jobs on a head that `ray start` started: with Ray's own command and with ours, with a token and without."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.job_submission import JobStatus

from raysim.analysis.study.results import Result, read
from raysim.cli.submit import submit
from raysim.core.errors import RunFailedError
from raysim.executors.ray import jobs
from tests.analysis.study.test_study import COMPARISON, ran, written
from tests.conftest import CONFIGS, ROOT
from tests.heads import RAY, Head, environment, head
from tests.stores import store_in

SMALL = (
    "rounds=1", "population.clients=6", "selection.clients_per_round=3", "training.epochs=1",
    "model.options={channels: [4, 8], hidden: 16}",
)  # fmt: skip
SET = [part for setting in SMALL for part in ("--set", setting)]
ON_RAY = ["--set", "executor.num_actors=2"]
HERE = ["--set", "executor.kind=in-process"]
TIMEOUT = 300


@pytest.fixture(scope="module")
def guarded():
    with head(with_token=True) as running:
        yield running


@pytest.fixture(scope="module")
def digest(tmp_path_factory) -> str:
    """What the small experiment comes to in this process's own Python."""
    folder = tmp_path_factory.mktemp("here")
    store = ["--set", f"tracking.uri={store_in(folder, 'm.db')}", "--output", str(folder / "out"), "--json"]
    done = raysim(["run", str(CONFIGS / "digits.yaml"), *SET, *HERE, *store], environment(Path.home()), folder)
    return json.loads(done.stdout.splitlines()[-1])["params_sha256"]


def raysim(arguments: list[str], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "raysim", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def with_rays_command(running: Head, folder: Path, **more: str) -> subprocess.CompletedProcess:
    """The line of the documentation, typed in the checkout."""
    submit = [RAY, "job", "submit", "--address", running.dashboard, "--working-dir", ".", "--"]
    store = ["--set", f"tracking.uri={store_in(folder, 'm.db')}", "--output", str(folder / "out"), "--json"]
    train = ["python", "jobs/train.py", "jobs/configs/digits.yaml", *SET, *ON_RAY, *store]
    return subprocess.run(
        [*submit, *train],
        env=running.environment(**more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def lines_with(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def files_with(token: str, folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if token.encode() in path.read_bytes()]


@pytest.mark.ray
@pytest.mark.long
def test_rays_own_command_runs_the_script_with_a_token(guarded, tmp_path, digest) -> None:
    done = with_rays_command(guarded, tmp_path, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (summary,) = lines_with(done.stdout, '{"run_id"')
    assert json.loads(summary)["params_sha256"] == digest
    assert guarded.token not in done.stdout + done.stderr
    (sent,) = guarded.sessions.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (sent / "raysim" / "simulation" / "round.py").is_file()
    assert {".git", ".venv", "runs", ".mypy_cache", ".ruff_cache"}.isdisjoint(os.listdir(sent))
    assert sum(path.stat().st_size for path in sent.rglob("*.*")) < 20e6


@pytest.mark.ray
@pytest.mark.slow
def test_a_config_is_submitted_from_anywhere_and_the_token_is_never_written(guarded, tmp_path, digest) -> None:
    """MLFLOW_TRACKING_URI travels; no log of ours or of Ray's holds the token."""
    (tmp_path / "mine.yaml").write_bytes((CONFIGS / "digits.yaml").read_bytes())
    env = guarded.environment(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/m.db", RAY_ADDRESS="127.0.0.1:1")
    target = ["--address", guarded.dashboard, "--output", str(tmp_path / "out"), "--json"]
    done = raysim(["submit", "mine.yaml", *SET, *ON_RAY, *target], env, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary["params_sha256"] == digest
    assert summary["tracking_uri"] == f"sqlite:///{tmp_path}/m.db"
    assert "round 1/1" in done.stderr
    assert guarded.token not in done.stdout + done.stderr
    assert files_with(guarded.token, guarded.sessions) + files_with(guarded.token, tmp_path) == []


@pytest.mark.ray
@pytest.mark.long
def test_a_job_ends_with_its_own_exit_code_and_finds_the_users_modules(guarded, tmp_path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my.yaml").write_bytes((CONFIGS / "digits.yaml").read_bytes())
    (folder / "mine.py").write_text("def score(view):\n    raise ArithmeticError('the score of mine')\n")
    target = ["--address", guarded.dashboard, "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]
    theirs = ["--set", "method.name=magnitude", "--set", "method.score=mine:score"]
    common = ["submit", "my.yaml", *SET, *HERE, *target, *theirs]
    alone = raysim(common, guarded.environment(), folder)
    assert alone.returncode == 2
    assert "method.score='mine:score' names a file or folder of this directory" in alone.stderr
    failed = raysim([*common, "--working-dir", ".", "--output", str(tmp_path / "a")], guarded.environment(), folder)
    assert failed.returncode == 1
    assert "the score of mine" in failed.stdout
    unknown = [*common, "--working-dir", ".", "--set", "model.name=unheard"]
    refused = raysim([*unknown, "--output", str(tmp_path / "b")], guarded.environment(), folder)
    assert refused.returncode == 2
    assert "model.name='unheard' is unknown" in refused.stdout


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_interrupted_leaves_the_job_running_and_says_how_to_stop_it(guarded, tmp_path, sent, code) -> None:
    long = ["--set", "rounds=100000", *HERE, "--tracking-uri", store_in(tmp_path, "m.db")]
    target = ["--address", guarded.dashboard, "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "raysim", "submit", str(CONFIGS / "digits.yaml"), *SET, *long, *target]
    env = guarded.environment(RAY_AUTH_MODE="token")
    following = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=-1, stderr=-1, text=True)
    assert any("round 2/" in line for line in following.stdout)
    following.send_signal(sent)
    _, errors = following.communicate(timeout=60)
    assert following.returncode == code
    (told,) = lines_with(errors, "raysim: job ")
    assert "continues" in told
    stop = told.split("`")[3].split()
    stopped = subprocess.run([RAY, *stop[1:]], env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in stopped.stdout + stopped.stderr


@pytest.mark.ray
@pytest.mark.long
def test_who_has_no_token_or_another_is_turned_away(guarded, tmp_path) -> None:
    arguments = ["submit", str(CONFIGS / "digits.yaml"), *SET, "--address", guarded.dashboard]
    without = raysim(arguments, environment(tmp_path), tmp_path)
    assert without.returncode == 2
    assert "Missing authentication token; Ray looks for it in RAY_AUTH_TOKEN" in without.stderr
    other = "0123456789abcdef" * 4
    wrong = raysim(arguments, environment(tmp_path) | {"RAY_AUTH_TOKEN": other}, tmp_path)
    assert wrong.returncode == 2
    assert "Invalid authentication token" in wrong.stderr
    assert other not in wrong.stdout + wrong.stderr
    joined = raysim(
        ["run", str(CONFIGS / "digits.yaml"), *SET, "--set", f"executor.address={guarded.address}"],
        environment(tmp_path),
        tmp_path,
    )
    assert joined.returncode == 2
    assert (
        f"executor.address='{guarded.address}' requires a token: Ray looks for it in RAY_AUTH_TOKEN" in joined.stderr
    )
    here = raysim(
        ["run", str(CONFIGS / "digits.yaml"), *SET, "--set", f"executor.address={guarded.address}"],
        guarded.environment(),
        tmp_path,
    )
    assert here.returncode == 0, here.stderr[-2000:]


@pytest.mark.ray
@pytest.mark.long
def test_a_head_without_a_token_takes_jobs_of_both_commands(tmp_path, digest) -> None:
    with head(with_token=False) as running:
        done = with_rays_command(running, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (summary,) = lines_with(done.stdout, '{"run_id"')
        assert json.loads(summary)["params_sha256"] == digest
        target = ["--address", running.dashboard, "--output", str(tmp_path / "a"), "--no-wait", "--json"]
        store = ["--tracking-uri", store_in(tmp_path, "m.db")]
        ours = raysim(
            ["submit", str(CONFIGS / "digits.yaml"), *SET, *HERE, *target, *store], running.environment(), tmp_path
        )
        assert ours.returncode == 0, ours.stderr
        job = json.loads(ours.stdout)["job"]
        follow = [RAY, "job", "logs", "--follow", job, "--address", running.dashboard]
        log = subprocess.run(follow, env=running.environment(), capture_output=True, text=True, timeout=TIMEOUT)
        assert f'"params_sha256": "{digest}"' in log.stdout


def measured(result: Result) -> dict:
    """All figures but the seconds of this machine."""
    return {name: value for name, value in result.figures.items() if name != "wall_s"}


@pytest.mark.ray
@pytest.mark.long
def test_a_study_is_submitted_and_goes_on_from_what_the_first_job_left(guarded, tmp_path) -> None:
    folder = written(tmp_path / "digits-study", cells={"core": {"base": "core.yaml"}}, contrasts=[])
    alone = COMPARISON | {"base": "digits.yaml", "methods": ["fedavg", "ca-hfp"]}
    (folder / "core.yaml").write_text(yaml.safe_dump(alone), encoding="utf-8")
    (folder / "digits.yaml").write_text((CONFIGS / "digits.yaml").read_text(), encoding="utf-8")
    assert ran(folder) == 0
    here = {(each.kind, each.row, each.seed): each for each in read(folder / "results.jsonl")}
    (folder / "results.jsonl").unlink()
    shared = tmp_path / "shared"
    target = ["--address", guarded.dashboard, "--output", str(shared), "--tracking-uri", store_in(tmp_path, "m.db")]
    env = guarded.environment()
    first = raysim(["submit", str(folder), *target], env, tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    lines = (shared / "digits-study.jsonl").read_text().splitlines()
    again = raysim(["submit", str(folder), *target], env, tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (shared / "digits-study.jsonl").read_text().splitlines() == lines, "nothing is repeated"
    there = {(each.kind, each.row, each.seed): each for each in read(shared / "digits-study.jsonl")}
    assert {key: each.key for key, each in there.items()} == {key: each.key for key, each in here.items()}
    assert {key: measured(each) for key, each in there.items()} == {key: measured(each) for key, each in here.items()}
    assert "## core" in (shared / "digits-study.md").read_text(encoding="utf-8")
    assert (shared / "digits-study.svg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--output=nothing is not allowed with a study, whose results have to outlive the job"),
        (["--output", "out"], "--output='out' is not allowed with a study"),
        (["--output", "s3://bucket/x"], "--output='s3://bucket/x' is not allowed with a study"),
        (
            ["--output", "/shared", "--cells", "cor"],
            "--cells='cor': 'cor' is no cell of the study; it has: core, even",
        ),
        (["--output", "/shared", "--json"], "--json is not allowed with a study"),
        (["--output", "/shared", "--set", "rounds=0"], "rounds=0 is not allowed"),
        (["--output", "/shared"], "base='../core.yaml' in"),
        (["--output", "https://me:hush@host"], "--output="),
    ],
)
def test_a_study_whose_results_would_be_lost_or_that_is_not_whole_is_not_sent(tmp_path, options, said) -> None:
    folder = written(tmp_path / "study")
    (folder / "core.yaml").rename(tmp_path / "core.yaml")
    text = (folder / "study.yaml").read_text().replace("core.yaml", "../core.yaml")
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    sent = ["submit", str(folder), "--address", "http://127.0.0.1:1", *options]
    done = raysim(sent, environment(tmp_path), tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "hush" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert len(line) < 1000


@pytest.mark.slow
def test_cells_belong_to_studies_alone(tmp_path) -> None:
    sent = ["submit", str(CONFIGS / "digits.yaml"), "--address", "http://127.0.0.1:1", "--cells", "core"]
    done = raysim(sent, environment(tmp_path), tmp_path)
    assert (done.returncode, "--cells='core' is not allowed" in done.stderr) == (2, True)


@pytest.mark.slow
def test_an_address_that_is_none_or_does_not_answer_is_refused_in_one_line(tmp_path) -> None:
    config = str(CONFIGS / "digits.yaml")
    for address, reason in (("127.0.0.1:6379", "is not allowed"), ("http://127.0.0.1:1", "cannot be reached")):
        done = raysim(["submit", config, "--address", address], environment(tmp_path), tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"raysim: --address='{address}' {reason}")
    wrong = raysim(
        ["submit", config, "--set", "rounds=0", "--address", "http://127.0.0.1:1"], environment(tmp_path), tmp_path
    )
    assert (wrong.returncode, "rounds=0 is not allowed" in wrong.stderr) == (2, True)


@pytest.mark.slow
def test_a_secret_in_a_uri_is_not_sent(tmp_path) -> None:
    """Who reads the dashboard reads a job's command and variables."""
    secret, config = "https://me:hush@host:5000", str(CONFIGS / "digits.yaml")
    given = (
        ["--tracking-uri", secret],
        ["--output", "s3://id:hush@bucket/x"],
        ["--set", f"tracking.uri={secret}"],
        [],
    )
    for options in given:
        env = environment(tmp_path) | ({} if options else {"MLFLOW_TRACKING_URI": secret})
        done = raysim(["submit", config, "--address", "http://127.0.0.1:1", *options], env, tmp_path)
        assert done.returncode == 2
        assert "it holds a secret" in done.stderr
        assert "hush" not in done.stderr


class Breaking:
    """A job server whose connections break after each line, and that may stop answering."""

    def __init__(self, lines: list[str], is_gone: bool = False) -> None:
        self._lines, self._is_gone, self.connections = lines, is_gone, 0

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        self.connections += 1
        for line in self._lines[: self.connections]:
            yield line
        raise RuntimeError("WebSocket closed")

    def get_job_info(self, id: str) -> SimpleNamespace:
        if self._is_gone:
            raise ConnectionError("refused")
        is_over = self.connections == len(self._lines) - 1
        return SimpleNamespace(status=JobStatus.SUCCEEDED if is_over else JobStatus.RUNNING)

    def get_job_logs(self, id: str) -> str:
        return "".join(self._lines)


def test_a_connection_that_breaks_is_resumed_where_it_broke_as_long_as_the_server_answers(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    monkeypatch.setattr(jobs, "UNREACHABLE_S", 0.0)
    shown: list[str] = []
    server = Breaking(["round 1\n", "round 2\n", "round 3\n", "done\n"])
    assert jobs.Job(server, "job", "http://head:8265").follow(shown.append).status is JobStatus.SUCCEEDED
    assert "".join(shown) == "round 1\nround 2\nround 3\ndone\n"
    with pytest.raises(
        RunFailedError, match=r"http://head:8265 has not answered for 0 s .*the job may still be running: `ray job"
    ):
        jobs.Job(Breaking(["round 1\n"], is_gone=True), "job", "http://head:8265").follow(shown.append)


def test_the_page_tells_every_option_of_submit() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    options = {option for each in submit.params for option in each.opts if option.startswith("--")} - {"--address"}
    assert set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE)) == options
