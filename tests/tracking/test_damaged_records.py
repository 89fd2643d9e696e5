"""Records of a run that are damaged, of another run, or of other types: one message that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysim
from raysim.analysis.replay import finished_run
from raysim.analysis.sweep.journal import NAME, Journal
from raysim.core.errors import SettingError
from raysim.report import write
from raysim.tracking.run_reader import DIGESTED
from tests.conftest import settings_of
from tests.experiment.test_resume import played

Harm = Callable[[Path], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    few = ("data.max_train_examples=100", "method.options.exploration_epochs=1")
    played(folder, settings_of("autoflip", "tracking.uri=none", "evaluation.targets=[0.05]", *few))
    return folder


def read_all(folder: Path) -> None:
    """Read a run as `raysim.load` offers it, part by part."""
    with raysim.load(folder) as run:
        for part in (
            "metadata",
            "summary",
            "rounds",
            "clients",
            "channels",
            "partition",
            "devices",
            "plan",
            "budgets",
        ):
            getattr(run, part)
        run.table("method")
        run.params()


def refusals(folder: Path) -> set[str]:
    """The messages of all readers of a run; none of them raises anything else."""
    found = set()
    for reader in (read_all, lambda each: write.of_named(str(each)), lambda each: finished_run.read(str(each))):
        try:
            reader(folder)
        except SettingError as error:
            found.add(str(error))
    return found


def harmed(finished: Path, folder: Path, harm: Harm, keeps_digests: bool) -> Path:
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints"))
    if not keeps_digests:
        change(folder / "summary.json", files_sha256={})
    harm(folder)
    return folder


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGESTED)
def test_a_bit_that_flips_in_a_finished_file_is_found(name: str, finished: Path, tmp_path: Path) -> None:
    size, random = (finished / name).stat().st_size, np.random.default_rng(0)
    for number, bit in enumerate(random.integers(0, 8 * size, 3).tolist()):

        def flip(folder: Path, bit: int = bit) -> None:
            content = bytearray((folder / name).read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(content)

        folder = harmed(finished, tmp_path / str(number), flip, keeps_digests=True)
        found = refusals(folder)
        message = f"{name} is damaged: it does not have the SHA-256 that summary.json records"
        assert found == {f"RUN={str(folder)!r} cannot be read: {message}"}


@pytest.mark.slow
def test_a_table_that_is_joined_to_itself_or_taken_from_elsewhere_is_found(finished: Path, tmp_path: Path) -> None:
    def join(folder: Path) -> None:
        table = pq.read_table(folder / "clients.parquet")
        pq.write_table(pa.concat_tables([table, table]), folder / "clients.parquet")

    assert refusals(harmed(finished, tmp_path / "joined", join, keeps_digests=True))
    assert refusals(harmed(finished, tmp_path / "whole", lambda _: None, keeps_digests=True)) == set()
    assert refusals(harmed(finished, tmp_path / "before", lambda _: None, keeps_digests=False)) == set()


DEEP = "[" * 100_000
WRONG: dict[str, tuple[str, Harm]] = {
    "budgets of a list": ("budgets.json", lambda folder: (folder / "budgets.json").write_text("[1]")),
    "deep budgets": ("budgets.json", lambda folder: (folder / "budgets.json").write_text(DEEP)),
    "groups of a number": ("plan.json", lambda folder: change(folder / "plan.json", groups=5)),
    "deep plan": ("plan.json", lambda folder: (folder / "plan.json").write_text(DEEP)),
    "targets of a number": ("summary.json", lambda folder: change(folder / "summary.json", targets=5)),
    "targets of numbers": ("summary.json", lambda folder: change(folder / "summary.json", targets=[5])),
    "no full model": ("summary.json", lambda folder: change(folder / "summary.json", full_model=None)),
    "text for bytes": ("summary.json", lambda folder: change(folder / "summary.json", down_bytes="many")),
    "digests of a list": ("summary.json", lambda folder: change(folder / "summary.json", files_sha256=["a"])),
    "deep summary": ("summary.json", lambda folder: (folder / "summary.json").write_text(DEEP)),
    "no text": ("summary.json", lambda folder: (folder / "summary.json").write_bytes(b"\xff\xfe\x00")),
    "environment of a list": ("run.json", lambda folder: change(folder / "run.json", environment=[])),
    "id of a number": ("run.json", lambda folder: change(folder / "run.json", run_id=7)),
    "deep run.json": ("run.json", lambda folder: (folder / "run.json").write_text(DEEP)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_json_of_other_types_is_refused_by_the_name_of_its_file(case: str, finished: Path, tmp_path: Path) -> None:
    file, harm = WRONG[case]
    folder = harmed(finished, tmp_path / "out", harm, keeps_digests=False)
    found = refusals(folder)
    assert found
    assert all(message.startswith(f"RUN={str(folder)!r} cannot be read: {file}") for message in found)
    assert all(len(message) < 1000 for message in found)


RETYPED = {
    ("clients", "round"): "1",
    ("clients", "client"): 0.5,
    ("clients", "tier"): 1,
    ("clients", "lasts_s"): "long",
    ("clients", "total_s"): [1.0],
    ("rounds", "round"): 1.5,
    ("rounds", "accuracy"): "high",
    ("channels", "unit"): "first",
    ("channels", "examples"): 2.5,
    ("partition", "label"): "a",
}


def retype(file: Path, column: str, value: object) -> None:
    found = pq.read_table(file)
    values = pa.array([value] * len(found))
    pq.write_table(found.set_column(found.column_names.index(column), column, values), file)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column"), RETYPED)
def test_a_column_of_another_type_is_named(table: str, column: str, finished: Path, tmp_path: Path) -> None:
    """In a run of before, whose tables have no digests, and in one that has not ended."""
    before, unfinished = (
        harmed(finished, tmp_path / name, lambda _: None, keeps_digests=False) for name in ("before", "unfinished")
    )
    (unfinished / "summary.json").unlink()
    for folder, file in ((before, f"{table}.parquet"), (unfinished, f"{table}/round_000002.parquet")):
        if not (folder / file).is_file():
            continue  # the partition has no parts
        retype(folder / file, column, RETYPED[table, column])
        found = {message for message in refusals(folder) if "has not finished" not in message}
        assert len(found) == 1
        expected = f"RUN={str(folder)!r} cannot be read: {file} is damaged: its column {column!r} is of type "
        assert found.pop().startswith(expected)


@pytest.mark.parametrize("line", ["[1]", DEEP, '{"trial": "a"}', '{"trial": 9}', '{"trial": 0, "other": 1}', "{"])
def test_a_damaged_line_of_a_sweeps_journal_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"trial": 0, "round": 1, "value": 0.5, "accuracy": 0.5}\n' + line + "\n")
    with pytest.raises(SettingError, match=r"journal\.jsonl' cannot be read: line 2 is damaged"):
        Journal(tmp_path, 2)
