"""Any text gives one value of bounded size, or one short message."""

import math
import os
import time
from contextlib import suppress

import pytest
import yaml
from pydantic import BaseModel, field_validator

from raysim.config import loader, yaml_text
from raysim.config.yaml_text import read, write
from raysim.core.errors import MAX_MESSAGE, SettingError, refusing
from tests.conftest import CONFIGS

DIGITS = CONFIGS / "digits.yaml"


def refusal(text: str, name: str = "CONFIG='c.yaml'") -> str:
    with pytest.raises(SettingError) as refused:
        read(text, name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0xff", 255), ("-0", 0), ("+7", 7), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf), ("07.5", 7.5),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)), ("5e-324", 5e-324), ("0e-999", 0.0),
        ("'010'", "010"), ('"1:30"', "1:30"), ("127.0.0.1", "127.0.0.1"), ("host:8080", "host:8080"), ("y", "y"),
        ("inf", "inf"), ("1.2.3", "1.2.3"), ("a_1", "a_1"), ("_", "_"), ("v1:30", "v1:30"), ("'yes'", "yes"),
        ("%YAML 1.2\n---\n3\n...\n", 3), ("\ufeff3", 3), ("# only\n", None), ("<<", "<<"), ("=", "="),
        ("|\n  a\n  b\n", "a\nb\n"), ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("b: {<<: [{k: 1}, {k: 2, l: 3}]}", {"b": {"k": 1, "l": 3}}),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(text, value):
    assert read(text) == value
    assert type(read(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "010", "-017", "08", "0o17", "0b11", "0b_", "0x_", "-0x1f", "0xf_f", "1:30", "1:30:59.5", "1_000", "1_0.5e3",
        "._5", "yes", "No", "ON", "off", "2020-01-01", "2001-12-14t21:59:43.10-05:00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "a: {}", "a: [1, {}]", "{}: 1"])
def test_scalars_that_two_versions_of_yaml_read_differently_are_refused(text, form):
    message = refusal(form.format(text))
    assert f"{text} is " in message
    assert "in YAML 1.1 and " in message
    assert "quotes around it" in message


@pytest.mark.parametrize(
    "text",
    [
        "9" * 20, "-" + "9" * 5000, "0x" + "f" * 17, "0x" + "f" * 5000, "9223372036854775808", "1e309", "-1e9999999",
        "1e-330", "0." + "0" * 400 + "1", "1" * 5000 + ".0",
    ],
)  # fmt: skip
def test_numbers_beyond_64_bits_are_refused(text):
    message = refusal(f"seed: {text}")
    assert message.startswith("CONFIG='c.yaml': line 1, seed: ")
    assert "does not fit into 64 bits" in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\ntraining:\n  b: 1\ntraining: {c: 1}", "training is given twice (lines 2 and 4); allowed: once"),
        ("a:\n  b: {c: 1,\n    'c': 2}", "a.b.c is given twice (lines 2 and 3); allowed: once"),
        ("a: {<<: {b: 1}, <<: {b: 2}}", "a.<< is given twice (lines 1 and 1)"),
        ("l: [1, {x: 1, x: 1}]", "l.1.x is given twice"),
    ],
)
def test_a_name_given_twice_is_refused_with_both_lines(text, message):
    assert refusal(text).startswith(f"CONFIG='c.yaml': {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 2", "line 1: the name 1 is no text"), ("a:\n  null: 2", "line 2, a: the name null is no text"),
        ("1.5: 2", "the name 1.5 is no text"), ("true: 2", "the name true is no text"),
        ("? [a]\n: 2", "the name list is no text"), ("{a: 1}: 2", "the name dict is no text"),
        ("a: !!python/object/apply:os.system [ls]", "the tag "), ("a: !!binary aGk=", "the tag "),
        ("a: !mine 1", "the tag !mine"), ("!!str 1: 2", "the tag "), ("a: !!int '1'", "the tag "),
        ("a: &x [*x]", "*x repeats nothing that ends before it"), ("a: *x", "*x repeats nothing"),
        ("a: 1\n---\nb: 1", "line 2: a second document begins"),
        ('a: "\\0"', "holds NUL"), ('a: "\\ud800"', "half of a surrogate pair"), ('"\\udfff": 1', "surrogate"),
        ("a: {<<: 3}", "allowed: a mapping or a list of mappings"), ("a: {<<: [1]}", "a list of mappings"),
        ("a: " + "[" * 100_000, "nested too deeply"), ("- " * 100_000, "nested too deeply"),
        (f"a: &a {'[' * 21}1{']' * 21}\nb: {'[' * 19}*a{']' * 19}", "nested too deeply"),
        ("a: [" + "1," * 40_000, "too many values"), ("a: " + "x" * 600_000, "has 600,003 characters"),
    ],
)  # fmt: skip
def test_text_that_holds_something_else_is_refused(text, message):
    found = refusal(text)
    assert message in found
    assert found.startswith("CONFIG='c.yaml'")
    assert len(found) < 300


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: {", "a: '", "a: @", "\tb: 1", "a: b: c", "\x00", "a: \x07", "%YAML 3.0\n---\na", '"\\UFFFFFFFF"'],
)
def test_text_that_is_no_yaml_is_refused_in_one_line(text):
    found = refusal(text)
    assert found.startswith("CONFIG='c.yaml' is not YAML: ")
    assert "\n" not in found


def test_aliases_that_repeat_aliases_are_refused_by_the_size_of_what_they_repeat():
    laughs = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert "too many values" in refusal(f"a: &a [{','.join('x' * 9)}]\n{laughs}")


def test_an_alias_repeats_a_value_of_its_own():
    content = read("a: &x {k: [1]}\nb: *x")
    loader.set_value(content, "a.k.0", 2)
    assert content == {"a": {"k": [2]}, "b": {"k": [1]}}


UNITS = (
    "[",
    "x",
    "- ",
    "? ",
    "a: ",
    '"\\x41',
    "#",
    "{",
    "[],",
    "{a: 1},",
    "\n",
    " ",
    "\n- x",
    "'",
    "|\n ",
    "é",
    "1_",
    "_",
)


@pytest.mark.long
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("before", ["", "a: [", "a: ", "a: ."])
def test_the_longest_text_takes_about_a_second(unit, before):
    text = before + unit * ((yaml_text.USER.chars - len(before)) // len(unit))
    assert any(seconds_to_read(text) < 4 for _ in range(3)), "three times, since a busy machine is slow at times"


def seconds_to_read(text: str) -> float:
    start = time.process_time()
    with suppress(SettingError):
        read(text)
    return time.process_time() - start


TEXTS = [
    "yes",
    "010",
    "1:30",
    "1e3",
    "2020-01-01",
    "~",
    "",
    "null",
    "a: b",
    " x ",
    "a\nb",
    "é\u2028",
    "- a",
    "0o7",
    "'",
    "#",
]


@pytest.mark.parametrize(
    "value",
    [
        *TEXTS,
        1e-7,
        1e300,
        0.1,
        5e-324,
        -math.inf,
        2**63 - 1,
        True,
        None,
        [],
        {},
        [[1], {"a": None}],
        {"yes": 1, "010": 2},
    ],
)
def test_a_written_value_reads_back_the_same_here_and_in_yaml_1_1(value):
    text = write({"a": value, "b": [value]})
    assert text.isascii()
    for content in (read(text), yaml.safe_load(text)):
        assert content == {"a": value, "b": [value]}
        assert type(content["a"]) is type(value)


@pytest.mark.parametrize("override", ["{a: 1, a: 2}", "010", "[1", "!!str a", "9" * 5000, "\udcff", "x" * 700_000])
def test_an_override_is_refused_in_one_short_line_with_its_name(override):
    with pytest.raises(SettingError) as refused:
        loader.load(DIGITS, (f"model.options={override}",))
    assert str(refused.value).startswith("--set model.options=")
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a." * 5000 + "a", "a" * 100_000, "population.tiers." + "9" * 5000, "\x1b[31m", "\udcff"]
)
def test_an_override_of_any_name_is_refused_in_one_short_message(name):
    with pytest.raises(SettingError) as refused:
        loader.load(DIGITS, (f"{name}=1",))
    assert len(str(refused.value)) < 1000
    assert str(refused.value).replace("\n", "").isprintable()


def test_long_values_and_many_problems_are_counted(tmp_path):
    text = DIGITS.read_text() + f"stop: {{accuracy: '{'x' * 100_000}'}}\n"
    (tmp_path / "long.yaml").write_text(text + "".join(f"unknown_{i}: {i}\n" for i in range(2000)))
    with pytest.raises(SettingError) as refused:
        loader.load(tmp_path / "long.yaml")
    lines = str(refused.value).split("\n")
    assert len(str(refused.value)) <= MAX_MESSAGE
    assert lines[0].startswith("stop.accuracy='xxx")
    assert "valid number" in lines[0]
    assert lines[-1] == f"and {2001 - (len(lines) - 1):,} more problems"


@pytest.mark.parametrize("content", [b"\xff\xfea\x00", b"a: \xc3", b"\x80", b"\x1f\x8b\x08compressed"])
def test_a_file_of_bytes_that_are_no_text_is_refused(tmp_path, content):
    (tmp_path / "bytes.yaml").write_bytes(content)
    with pytest.raises(SettingError, match="is not YAML"):
        loader.load(tmp_path / "bytes.yaml")


def test_a_file_without_end_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(SettingError, match="characters; allowed: at most"):
        loader.read_yaml(loader.Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingError, match="is a named pipe; allowed: a file"):
        loader.read_yaml(tmp_path / "pipe")
    with pytest.raises(SettingError, match="cannot be read: File name too long"):
        loader.read_yaml(tmp_path / ("a" * 300))
    with pytest.raises(SettingError, match="is no path: embedded null byte"):
        loader.read_yaml(tmp_path / "a\0b")


class Fails(BaseModel):
    """Settings whose validator raises what pydantic does not expect."""

    number: float

    @field_validator("number")
    @classmethod
    def fail(cls, value: float) -> float:
        return [value][1]


@pytest.mark.parametrize(
    "error", [OverflowError("too large"), RecursionError(), MemoryError(), KeyError("x"), TypeError]
)
def test_whatever_a_validator_raises_is_a_refusal(error):
    with pytest.raises(SettingError, match=r"^it is wrong: "), refusing("it is wrong"):
        raise error
    with pytest.raises(SettingError, match="the settings are not allowed: IndexError"):
        loader.validated({"number": 0.0}, Fails)


def test_a_message_loses_its_middle_and_no_character_that_prints():
    message = str(SettingError("a\x1b[31mb\ud800\n" + "x" * 5000 + "; allowed: c"))
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("a\\x1b[31mb\\ud800\n")
    assert message.endswith("; allowed: c")
