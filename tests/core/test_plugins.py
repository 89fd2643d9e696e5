import json
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


FAILING = """
import json, sys

def raises(rows=3):
    return {}["rows"]

def long():
    raise ValueError("\\n".join(["a" * 5000] * 3))

def leaves():
    sys.exit(3)

def silent():
    raise RuntimeError

def in_a_library():
    json.loads("{")

def deep():
    return deep()

class Made:
    def __init__(self):
        raise OSError("no disk")

def refuses():
    from raysim.core.errors import SettingError
    raise SettingError("mine=1 is not allowed")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "KeyError: 'rows' (FILE:5, in raises)"),
        ("leaves", "SystemExit: 3 (FILE:11, in leaves)"),
        ("silent", "RuntimeError (FILE:14, in silent)"),
        ("in_a_library", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2"),
        ("in_a_library", "(FILE:17, in in_a_library)"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("Made", "OSError: no disk (FILE:24, in __init__)"),
        ("long", "(FILE:8, in long)"),
    ],
)
def test_all_that_a_users_code_raises_is_one_message_with_its_line(users_folder, name, message):
    file = users_folder / "my_scores_xyz.py"
    file.write_text(FAILING, encoding="utf-8")
    path = f"my_scores_xyz:{name}"
    function = plugins.load("data.name", path)
    with pytest.raises(SettingError) as refused:
        plugins.call("data.name", path, function, {}, {})
    assert str(refused.value).startswith(f"data.name={path!r} fails: ")
    assert message.replace("FILE", str(file)) in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_code_of_a_user_that_is_called_from_anywhere_is_named(users_folder):
    (users_folder / "my_scores_xyz.py").write_text(FAILING, encoding="utf-8")
    raises = plugins.load("method.name", "my_scores_xyz:raises")
    message = r"^method\.name='my_scores_xyz:raises' fails: KeyError: 'rows' \(.*my_scores_xyz\.py:5, in raises\)$"
    with pytest.raises(SettingError, match=message), plugins.users_code():
        sorted([1, 2], key=raises)


def test_a_refusal_of_the_users_own_passes_and_so_do_errors_of_others(users_folder, monkeypatch):
    monkeypatch.setattr(plugins, "_LOADED", {})  # other tests load parts of tests/, as a user's
    (users_folder / "my_scores_xyz.py").write_text(FAILING, encoding="utf-8")
    refuses = plugins.load("data.name", "my_scores_xyz:refuses")
    with pytest.raises(SettingError, match=r"^mine=1 is not allowed$"):
        plugins.call("data.name", "my_scores_xyz:refuses", refuses, {}, {})
    with pytest.raises(json.JSONDecodeError), plugins.users_code():
        json.loads("{")


def test_options_that_a_users_function_does_not_take_are_named(users_folder):
    (users_folder / "my_scores_xyz.py").write_text(FAILING, encoding="utf-8")
    raises = plugins.load("data.name", "my_scores_xyz:raises")
    with pytest.raises(SettingError, match=r"^data\.options=\{'row': 3\} is not allowed for data\.name=.*unexpected"):
        plugins.call("data.name", "my_scores_xyz:raises", raises, {}, {"row": 3})
    with pytest.raises(SettingError, match=r"^data\.options\.rows=4 is not allowed: data\.name=.* has it given"):
        plugins.call("data.name", "my_scores_xyz:raises", raises, {"rows": 3}, {"rows": 4})


@pytest.mark.parametrize("code", ["1 / 0", "import sys; sys.exit(2)", "def (", "x = " + "(" * 300])
def test_a_module_that_cannot_be_imported_is_one_message(users_folder, code):
    (users_folder / "my_scores_xyz.py").write_text(f"\n{code}\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"module 'my_scores_xyz' cannot be imported \(\w+: .*") as refused:
        plugins.load("model.name", "my_scores_xyz:net")
    line = f"{users_folder / 'my_scores_xyz.py'}:2, in <module>"
    assert (line in str(refused.value)) == (code in ("1 / 0", "import sys; sys.exit(2)"))
    assert len(str(refused.value)) < 1000
