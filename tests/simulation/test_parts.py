"""Parts of rounds are joined while a run goes on; whatever is on disk at a moment, each round is read once."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysim.core.storage.local import storage_path
from raysim.simulation import parts, records
from raysim.simulation.parts import GROUP_ROWS, SPAN, join, joined_path_of, parts_in, path_of
from tests.conftest import CONFIGS, TINY


def rows_of(round: int) -> int:
    """Some rounds have no rows."""
    return (round * 7) % 5


def columns(round: int, value: float = 0.5) -> dict[str, np.ndarray]:
    count = rows_of(round)
    found = {
        "round": np.full(count, round),
        "client": np.arange(count),
        "fate": np.full(count, "counted" if round % 2 else "late, ä"),
        "loss": np.where(np.arange(count) == 1, np.nan, round * value),
    }
    return found if round % 3 else found | {"extra": np.full(count, round / 3)}


def write(folder: Path, rounds: range, joins: bool = True) -> list[int]:
    """Write rounds as a run does; return how many files there were after each."""
    counts = []
    for round in rounds:
        records.write_part(columns(round), folder, round)
        if joins:
            join(folder, round)
        counts.append(len(parts_in(folder)))
    return counts


def merged(folder: Path) -> dict[str, list[object]]:
    table = pq.read_table(records.merge_parts(folder, folder.parent / f"{folder.name}.parquet"))
    return table.select(sorted(table.column_names)).to_pydict()


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, list[object]]:
    write(tmp_path / "plain", range(1, 101), joins=False)
    return merged(tmp_path / "plain")


def same(one: dict[str, list[object]], other: dict[str, list[object]]) -> bool:
    return repr(one) == repr(other)


def test_joined_parts_hold_the_rounds_of_the_small_ones(tmp_path: Path, plain: dict[str, list[object]]) -> None:
    counts = write(tmp_path / "clients", range(1, 101))
    assert max(counts) <= SPAN + 3
    assert counts[-1] == 3 + 4
    assert same(merged(tmp_path / "clients"), plain)
    assert pq.ParquetFile(tmp_path / "clients.parquet").num_row_groups == 100
    for round in (1, 2, 5, 31, 32, 33, 64, 96, 97, 100):
        found, expected = records.read_round(tmp_path / "clients", round), columns(round)
        assert found["client"].tolist() == expected["client"].tolist()
        np.testing.assert_array_equal(found["loss"], expected["loss"])
        assert records.read_round(tmp_path / "clients", round, ("loss",)).keys() == {"loss"}
        assert parts.holds(tmp_path / "clients", round)
    assert not parts.holds(tmp_path / "clients", 101)
    with pytest.raises(FileNotFoundError):
        records.read_round(tmp_path / "clients", 101)


def test_the_number_of_files_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SPAN", 4)
    counts = write(tmp_path / "clients", range(1, 301))
    assert max(counts) <= 4 * 3 + 4
    found = [(part.first, part.last) for part in parts_in(tmp_path / "clients")]
    assert (1, 64) in found
    assert same(merged(tmp_path / "clients"), _plain_of(tmp_path, 300))


def _plain_of(tmp_path: Path, count: int) -> dict[str, list[object]]:
    write(tmp_path / "small", range(1, count + 1), joins=False)
    return merged(tmp_path / "small")


@pytest.mark.parametrize("removed", [0, 1, 20, 32])
def test_a_run_that_is_killed_while_it_joins_loses_and_repeats_nothing(
    removed: int, tmp_path: Path, plain: dict[str, list[object]]
) -> None:
    """Every moment leaves the old files, perhaps a hidden partial file, then both, then fewer of the old ones."""
    folder, before = tmp_path / "clients", tmp_path / "before"
    write(folder, range(1, SPAN), joins=False)
    records.write_part(columns(SPAN), folder, SPAN)
    shutil.copytree(folder, before)
    assert join(folder, SPAN) == storage_path(joined_path_of(folder, 1, SPAN))
    for part in parts_in(before)[removed:]:
        shutil.copy(str(part.file), folder)
    (folder / f".rounds_000001-{SPAN:06d}.parquet.0123456789ab.partial").write_bytes(b"half")
    write(folder, range(SPAN + 1, 101))
    assert same(merged(folder), plain)
    assert records.read_round(folder, 5)["client"].tolist() == columns(5)["client"].tolist()


def test_rounds_that_are_repeated_after_a_resume_are_read_as_they_came_last(tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    write(folder, range(1, 2 * SPAN + 1))
    for round in range(20, SPAN + 11):
        records.write_part(columns(round, value=2.0), folder, round)
        assert records.read_round(folder, round)["loss"][0] == round * 2.0 if rows_of(round) else True
        join(folder, round)
    assert records.read_round(folder, 19)["loss"][0] == 19 * 0.5
    assert records.read_round(folder, 21)["loss"][0] == 21 * 2.0
    assert records.read_round(folder, SPAN + 9)["loss"][0] == (SPAN + 9) * 2.0
    assert records.read_round(folder, SPAN + 12)["loss"][0] == (SPAN + 12) * 0.5
    assert [part.num_rounds for part in parts_in(folder)].count(SPAN) == 2


def test_nothing_is_joined_where_a_round_is_missing_or_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for table in records.TABLES:
        write(tmp_path / table, range(1, SPAN + 1), joins=False)
    Path(str(path_of(tmp_path / "rounds", 3))).unlink()
    Path(str(path_of(tmp_path / "clients", 4))).write_bytes(b"no Parquet")
    records.join_parts(tmp_path, SPAN)
    assert len(parts_in(tmp_path / "rounds")) == SPAN - 1
    assert len(parts_in(tmp_path / "clients")) == SPAN
    assert len(parts_in(tmp_path / "channels")) == 1
    assert f"the files of {tmp_path / 'clients'} are not joined" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/.*"))


def test_files_that_are_not_parts_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "clients", range(1, SPAN + 1), joins=False)
    others = [tmp_path / "clients" / name for name in ("notes.txt", "copy.parquet", "round_x.parquet")]
    for other in others:
        other.write_bytes(b"mine")
    join(tmp_path / "clients", SPAN)
    assert all(other.read_bytes() == b"mine" for other in others)
    assert len(parts_in(tmp_path / "clients")) == 1


def test_a_joined_file_is_read_by_row_groups(tmp_path: Path) -> None:
    rows = GROUP_ROWS // 3 + 1
    for round in range(1, SPAN + 1):
        records.write_part({"round": np.full(rows, round), "client": np.arange(rows)}, tmp_path / "clients", round)
    joined = join(tmp_path / "clients", SPAN)
    assert joined is not None
    assert pq.ParquetFile(str(joined)).num_row_groups == -(-SPAN // 3)
    for round in (1, 3, 4, SPAN):
        assert set(records.read_round(tmp_path / "clients", round)["round"].tolist()) == {round}
        assert len(records.read_round(tmp_path / "clients", round)["client"]) == rows


def test_joined_parts_keep_the_key_of_their_run_and_those_of_two_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clients"
    for round in range(1, SPAN + 1):
        records.write_part(columns(round), folder, round, "ours")
    join(folder, SPAN)
    joined = f"clients/{joined_path_of(folder, 1, SPAN).name}"
    assert records.runs_of(folder, SPAN) == {joined: "ours"}
    records.write_part(columns(SPAN + 1), folder, SPAN + 1, "theirs")
    with pytest.raises(ValueError, match=rf"{joined} and clients/round_000033\.parquet are of different runs"):
        records.merge_parts(folder, tmp_path / "clients.parquet")
    for round in range(SPAN + 2, 2 * SPAN + 1):
        records.write_part(columns(round), folder, round, "ours")
    records.join_parts(tmp_path, 2 * SPAN)
    assert "clients/round_000033.parquet and clients/round_000034.parquet are of diff" in capsys.readouterr().err
    assert len(parts_in(folder)) == SPAN + 1


@pytest.mark.parametrize("joined", [False, True])
def test_rounds_beyond_the_last_one_are_left_out_and_a_round_that_is_missing_is_named(
    joined: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = tmp_path / "clients", tmp_path / "clients.parquet"
    write(folder, range(1, 4))
    expected = merged(folder)
    stranger = joined_path_of(folder, SPAN + 1, 2 * SPAN) if joined else path_of(folder, 9)
    write(tmp_path / "other", range(SPAN + 1, 2 * SPAN + 1))
    source = joined_path_of(tmp_path / "other", SPAN + 1, 2 * SPAN) if joined else path_of(folder, 3)
    stranger.write_bytes(source.read())
    missing = rf"clients/round_000004\.parquet is missing, and clients/{stranger.name} is there"
    with pytest.raises(FileNotFoundError, match=missing):
        records.merge_parts(folder, target)
    records.merge_parts(folder, target, last=3)
    assert f"clients/{stranger.name} is left out: the last round is 3" in capsys.readouterr().err
    assert same(pq.read_table(target).select(sorted(expected)).to_pydict(), expected)


@pytest.mark.parametrize("harm", ["bytes", "type", "rounds", "nested"])
def test_a_damaged_part_is_named_when_it_is_merged(harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    write(folder, range(1, SPAN + 4))
    joined = Path(str(joined_path_of(folder, 1, SPAN)))
    table = pq.read_table(joined)
    if harm == "bytes":
        joined.write_bytes(joined.read_bytes()[:-9])
    elif harm == "type":
        place = table.column_names.index("loss")
        pq.write_table(table.set_column(place, "loss", pa.array(["high"] * len(table))), joined)
    else:
        rows = "[" * 100_000 if harm == "nested" else "[1, 2]"
        pq.write_table(table.replace_schema_metadata({parts.ROWS: rows}), joined)
    with pytest.raises(ValueError, match=rf"^clients/{joined.name} is damaged: "):
        records.merge_parts(folder, tmp_path / "clients.parquet")


@pytest.mark.long
def test_a_run_that_is_killed_around_a_join_is_resumed_to_the_tables_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """The first kill comes when the joined file appears, the second when the first round after it does."""
    settings = tmp_path / "digits.yaml"
    settings.write_text((CONFIGS / "digits.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    few = (*TINY[1:], f"rounds={SPAN + 8}", "checkpoint.every=5", "tracking.uri=none", "data.max_train_examples=100")
    sets = [part for override in few for part in ("--set", override)]
    command = [sys.executable, "-m", "raysim"]
    run = [*command, "run", str(settings), "--quiet", *sets, "--output"]
    subprocess.run([*run, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = tmp_path / "killed"
    starts = ([*run, str(killed)], [*command, "resume", str(killed), "--quiet"])
    awaited = (joined_path_of(killed / "clients", 1, SPAN), path_of(killed / "clients", SPAN + 2))
    for start, file in zip(starts, awaited, strict=True):
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not file.is_file():
            time.sleep(0.001)
        assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run([*command, "resume", str(killed), "--quiet"], check=True, capture_output=True)
    for table in records.TABLES:
        one, other = (records.read(folder / f"{table}.parquet") for folder in (tmp_path / "whole", killed))
        assert one.keys() == other.keys()
        for name in one.keys() - set(records.MEASURED):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_joined_round_has_the_metrics_that_it_had(tmp_path: Path) -> None:
    """A tier that was not drawn has no metric in a round, though a neighbour in the joined file has it."""
    shared = {"timestamp_ms": np.array([5]), "wall_s": np.array([0.5]), "loss/train": np.array([np.nan])}
    metrics = {round: {f"client_s/tier/{'ab'[round % 2]}": np.array([float(round)])} for round in range(1, SPAN + 1)}
    for round, own in metrics.items():
        records.write_part({"round": np.array([round]), **shared, **own}, tmp_path / "rounds", round)
    before = [records.logged(tmp_path / "rounds", round) for round in metrics]
    assert join(tmp_path / "rounds", SPAN) is not None
    assert [records.logged(tmp_path / "rounds", round) for round in metrics] == before
    assert [each.metrics.keys() for each in before] == [own.keys() for own in metrics.values()]
