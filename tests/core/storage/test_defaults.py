"""New folders: each process has its own, and an empty one does not stay."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysim.core.errors import SettingError
from raysim.core.storage.defaults import folder_for


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")


def test_folders_of_the_same_second_are_different() -> None:
    def make(_: int) -> Path:
        with folder_for(None, "digits") as folder:
            (folder / "x").touch()
        return folder

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(16)))
    first = Path("runs/digits-20260101-000000")
    assert set(made) == {first, *(Path(f"{first}-{number}") for number in range(2, 17))}
    assert all(folder.is_dir() for folder in made)


def test_a_folder_in_which_nothing_was_written_is_removed() -> None:
    with folder_for(None, "digits") as folder:
        assert folder.is_dir()
    assert not Path("runs").exists()


def test_a_given_folder_is_left_to_its_user() -> None:
    with folder_for(Path("given"), "digits") as folder:
        assert folder == Path("given")
    assert not folder.exists()


def test_a_default_folder_that_cannot_be_made_is_refused() -> None:
    Path("runs").touch()
    with pytest.raises(SettingError, match="'runs' cannot be made"), folder_for(None, "digits"):
        pass
