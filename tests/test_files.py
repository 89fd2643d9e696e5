from pathlib import Path

import pytest

from raysim.files import write_atomically, write_text


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
