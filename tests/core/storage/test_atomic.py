from pathlib import Path

import pytest

from raysim.core.storage.atomic import remove_partials, write_atomically, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = write_text(tmp_path / "x.json", "old")

    def write(partial: Path) -> None:
        partial.write_text("half of the n")
        assert target.read_text() == "old"
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_atomically(target, write)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    write_text(target, "new")
    assert target.read_text() == "new"
    write_text(target, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_two_that_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    """As an actor that was taken for lost and its successor do."""
    target = tmp_path / "x.json"

    def write(partial: Path) -> None:
        partial.write_text("half")
        write_text(target, "of another writer")
        assert partial.read_text() == "half"
        partial.write_text("whole")

    write_atomically(target, write)
    assert target.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_killed_writers_have_left_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = [f"{folder}/.x.json.{owner}.partial" for folder in (".", "deep") for owner in ("a" * 12, "b" * 12)]
    for name in names:
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "x.json", "whole")
    (tmp_path / ".notes.partial").write_text("of somebody else")
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".notes.partial", "deep", "x.json"]
