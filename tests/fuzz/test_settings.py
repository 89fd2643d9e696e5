"""Any text, bytes, override or number gives settings or one short message, and no traceback, hang or full memory.

The seed is fixed. `make fuzz` tries ten times as many inputs.
"""

import contextlib
import copy
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from raysim.analysis.study import plan as study
from raysim.analysis.sweep import plan as sweep
from raysim.cli.main import main
from raysim.config import loader, yaml_text
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError
from raysim.simulation.build import check_names
from tests.conftest import CONFIGS, ROOT
from tests.fuzz.pieces import PIECES

pytestmark = pytest.mark.long
INPUTS = int(os.environ.get("RAYSIM_FUZZ_INPUTS", "2000"))
DRY_RUNS = max(4, INPUTS // 200)
MAX_S, MAX_BYTES, MAX_MESSAGE = 2.0, 10**9, 1000
FILES = sorted(CONFIGS.glob("*.yaml"))


def fuzz(share: float) -> settings:
    """A share of all inputs, the same ones in every run."""
    return settings(
        max_examples=max(1, int(INPUTS * share)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail where reading takes long, a message is long, or memory has grown; a refusal is as good as settings."""
    start = time.process_time()
    try:
        yield
    except SettingError as error:
        message = str(error)
        if len(message) >= MAX_MESSAGE or not message.replace("\n", "").isprintable():
            pytest.fail(f"a message of {len(message)} characters: {message!r}")
    assert time.process_time() - start < MAX_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < AT_FIRST + MAX_BYTES


AT_FIRST = 0


@pytest.fixture(autouse=True, scope="module")
def _memory_at_first() -> None:
    """Tests before may have used more."""
    global AT_FIRST
    AT_FIRST = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def content_of(path: Path) -> dict[str, Any]:
    return loader.read_yaml(path)


WORDS = st.sampled_from([*PIECES, "\ud800", "\ufeff", "\x85", "\u2028", "\0", "  ", "\t", "\n"])
EDGES = st.sampled_from([2**63, 2**64, 1e308, 5e-324, float("nan"), 2**31 - 1, 10**12])
BEYOND = st.sampled_from([10**400, -(10**4000), "x" * 10_000])
NUMBERS = st.integers() | st.integers(-3, 3) | st.floats() | EDGES | BEYOND
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=30) | WORDS
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8) | WORDS, each, max_size=4)
)
ANY_BYTES = st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))


@st.composite
def changed_text(draw: st.DrawFn) -> str:
    """The text of a shipped file with lines removed, repeated and exchanged, and pieces replaced by others."""
    text = text_of(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(
            st.one_of(WORDS, st.text(max_size=12), st.just(text[start:stop] * 2), st.just(""), st.just("\n"))
        )
        text = text[:start] + piece + text[stop:]
    return text * draw(st.sampled_from([1, 1, 1, 2, 50]))


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in inner:
            yield from places_in(child, (*path, key))


@cache
def complete() -> dict[str, Any]:
    return loader.load(CONFIGS / "digits.yaml").model_dump()


@st.composite
def changed_settings(draw: st.DrawFn, of: dict[str, Any] | None = None) -> dict[str, Any]:
    """Complete settings with some values, of whole sections or of single fields, replaced by any."""
    content = copy.deepcopy(complete() if of is None else of)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([place for place in places_in(content) if place]))
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = draw(VALUES)
    return content


def checked(content: dict[str, Any]) -> None:
    """Read settings as far as a run does before it loads data, and again as they are recorded."""
    found = loader.validated(content, ExperimentSettings)
    assert loader.validated(yaml_text.read(loader.to_yaml(found)), ExperimentSettings) == found
    loader.digest(found)
    loader.flatten(found)
    check_names(found)


@fuzz(0.15)
@given(ANY_BYTES)
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with bounded():
        loader.load(path)


@fuzz(0.3)
@given(changed_text())
def test_changed_files(content):
    with bounded():
        checked(loader.mapping_in(content, "CONFIG='c.yaml'"))


@fuzz(0.2)
@given(
    st.one_of(st.text(max_size=60), st.builds("{}={}".format, st.text(max_size=20), st.text(max_size=40)), WORDS),
    st.sampled_from(["", "seed=", "training.", "population.tiers.0.name=", "model.options=", "method={name: "]),
)
def test_any_override(override, start):
    with bounded():
        checked(
            loader.with_overrides(
                copy.deepcopy(content_of(CONFIGS / "digits.yaml")), (start + override,)
            ).model_dump()
        )


@fuzz(0.3)
@given(changed_settings())
def test_any_value_of_any_field(content):
    with bounded():
        checked(content)


def is_written(path: Path, content: dict[str, Any]) -> bool:
    """Write settings to a file; no file holds a very long number, or half of a surrogate pair."""
    try:
        path.write_text(yaml_text.write(content), encoding="utf-8")
    except ValueError:
        return False
    return True


@fuzz(0.05)
@given(st.data())
def test_any_comparison_or_sweep(tmp_path_factory, data):
    for name, load in (("compare_digits.yaml", study.load), ("sweep_digits.yaml", sweep.load)):
        content = data.draw(changed_settings(content_of(CONFIGS / name)))
        path = tmp_path_factory.getbasetemp() / name
        if is_written(path, content):
            with bounded():
                load(path)


SMALL = (
    "data.max_train_examples=200", "model={name: mlp, options: {hidden: [4]}}", "population.clients=6", "rounds=2",
    "selection.clients_per_round=2", "executor.kind=in-process", "tracking.uri=none",
)  # fmt: skip


@cache
def small() -> dict[str, Any]:
    return loader.load(CONFIGS / "digits.yaml", SMALL).model_dump()


@settings(fuzz(1), max_examples=DRY_RUNS)
@given(st.data())
def test_a_dry_run_of_any_settings_ends_in_one_message_or_a_forecast(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "dry.yaml"
    content = data.draw(changed_settings(small()))
    if not is_written(path, content):
        return
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--dry-run"])
    assert ended.value.code in (0, 2)
    assert "Traceback" not in err.getvalue()
    assert len(err.getvalue()) < MAX_MESSAGE or ended.value.code == 0
    assert ("training rows per client" in out.getvalue()) == (ended.value.code == 0)


def test_no_input_takes_a_gigabyte():
    """In a process that cannot have it; memory above is measured at its highest, which may be of tests before."""
    command = [sys.executable, "-m", "tests.fuzz.limited", str(CONFIGS), str(INPUTS // 5)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > INPUTS // 5
