import sys

import pytest

from raysim.core import plugins
from raysim.core.errors import SettingError


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_scores_xyz.py").write_text("def largest(): return 7\n")
    yield tmp_path
    sys.modules.pop("my_scores_xyz", None)


def test_a_module_in_the_working_directory_is_found_and_travels(users_folder):
    assert plugins.load("method.score", "my_scores_xyz:largest")() == 7
    assert sys.modules["my_scores_xyz"] in plugins.users_modules()


def test_an_installed_module_does_not_travel():
    import yaml

    assert plugins.load("model.name", "yaml:safe_load") is yaml.safe_load
    assert yaml not in plugins.users_modules()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_scores_xyz:larges", "has no 'larges'; nearest: largest"),
        ("no_such_module:score", "module 'no_such_module' cannot be imported"),
    ],
)
def test_what_cannot_be_found_is_one_clear_message(users_folder, path, said):
    with pytest.raises(SettingError, match=said) as caught:
        plugins.load("method.score", path)
    assert str(caught.value).startswith(f"method.score='{path}'")
