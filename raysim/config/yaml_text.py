"""Read and write YAML text: one value of bounded size, without tags, whose keys are texts and differ."""

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.representer import SafeRepresenter

from raysim.config import scalars
from raysim.core.errors import SettingError, reason_of, refusing, without_middle

MAX_DEPTH = 40
MERGE = "<<"
"""The key whose mapping, or list of mappings, gives values that are not given beside it."""


class Limits(NamedTuple):
    """The largest text: how many characters it has, and how many values, those that aliases repeat included."""

    chars: int
    values: int


USER = Limits(2**19, 30_000)
"""Of a text by a user, which takes at most about a second to read."""
RECORDED = Limits(2**26, 10_000_000)
"""Of a text that `write` wrote, which is longer than the one from which its value was read."""


def read(text: str, name: str = "", limits: Limits = USER) -> Any:
    """Return the value in a YAML text, of lists, dicts with texts as keys, texts, numbers, truth values and None.

    Args:
        text: The text.
        name: The name of the text in messages.
        limits: The largest text.

    Raises:
        SettingError: If it is not YAML, holds more than one document, more or deeper values than allowed, tags, keys
            that are no text or given twice, a number beyond 64 bits, or a value that YAML 1.1 reads differently.
    """
    prefix = f"{name} " if name else ""
    if len(text) > limits.chars:
        raise SettingError(f"{prefix}has {len(text):,} characters; allowed: at most {limits.chars:,}")
    with refusing(f"{prefix}is not YAML"):
        try:
            return _Reader(YAML(typ="safe", pure=True).parse(text), name, limits.values).document()
        except YAMLError as error:
            raise SettingError(f"{prefix}is not YAML: {_problem(error)}") from None


def write(content: Any) -> str:
    """Return a value as YAML that `read` reads back the same, and other readers, too."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.allow_unicode = False
    text = io.StringIO()
    writer.dump(content, text)
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class _Anchor:
    value: Any
    size: int
    depth: int


@dataclass(slots=True)
class _Reader:
    """Builds the value of a document from its events, with no recursion beyond `MAX_DEPTH`."""

    events: Iterator[Event]
    name: str
    most: int
    path: list[str] = field(default_factory=list)
    anchors: dict[str, _Anchor] = field(default_factory=dict)
    size: int = 0
    deepest: int = 0

    def document(self) -> Any:
        """Return the value of the only document; None: there is none."""
        value: Any = None
        documents = 0
        for event in self.events:
            if not isinstance(event, DocumentStartEvent):
                continue
            documents += 1
            if documents > 1:
                raise self._refusal(event, "a second document begins", "one document")
            value = self._value(next(self.events))
        return value

    def _value(self, event: Any) -> Any:
        if isinstance(event, AliasEvent):
            return self._repeated(event)
        size, deepest, self.deepest = self.size, self.deepest, 0
        self._count(event, 1, 0)
        if event.tag is not None:
            raise self._refusal(event, f"the tag {without_middle(event.tag, 60)}", "values without tags")
        value = self._untagged(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchor(value, self.size - size, self.deepest - len(self.path))
        self.deepest = max(deepest, self.deepest)
        return value

    def _untagged(self, event: Any) -> Any:
        if isinstance(event, SequenceStartEvent):
            return self._sequence()
        if isinstance(event, MappingStartEvent):
            return self._mapping()
        text: str = event.value
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise self._refusal(event, "a text holds NUL or half of a surrogate pair", "characters of Unicode")
        if event.style is not None:
            return text
        try:
            return scalars.plain(text)
        except SettingError as error:
            raise SettingError(f"{self._where(event)}: {error}") from None

    def _sequence(self) -> list[Any]:
        found: list[Any] = []
        for event in self.events:
            if isinstance(event, CollectionEndEvent):
                break
            self.path.append(str(len(found)))
            found.append(self._value(event))
            self.path.pop()
        return found

    def _mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[Any] = []
        for event in self.events:
            if isinstance(event, CollectionEndEvent):
                break
            key = self._key(event)
            self.path.append(key)
            if key in lines:
                raise self._twice(lines[key], event)
            lines[key] = _line(event)
            value = self._value(next(self.events))
            if key == MERGE and isinstance(event, ScalarEvent) and event.style is None:
                merged = self._mappings(value, event)
            else:
                found[key] = value
            self.path.pop()
        for name, value in (item for values in merged for item in values.items()):
            found.setdefault(name, value)
        return found

    def _key(self, event: Event) -> str:
        key = self._value(event)
        if not isinstance(key, str):
            shown = event.value if isinstance(event, ScalarEvent) else type(key).__name__
            raise self._refusal(event, f"the name {without_middle(str(shown), 60)} is no text", "a text, or quotes")
        return key

    def _mappings(self, value: Any, event: Event) -> list[dict[str, Any]]:
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in values):
            raise self._refusal(event, f"{MERGE} has another value", "a mapping or a list of mappings")
        return values

    def _repeated(self, event: AliasEvent) -> Any:
        anchor = self.anchors.get(event.anchor)
        if anchor is None:
            shown = without_middle(str(event.anchor), 60)
            raise self._refusal(event, f"*{shown} repeats nothing that ends before it", f"&{shown} before it")
        self._count(event, anchor.size, anchor.depth)
        return copy.deepcopy(anchor.value)

    def _count(self, event: Event, size: int, depth: int) -> None:
        """Count the values that begin at an event, and the levels below it."""
        self.size += size
        self.deepest = max(self.deepest, len(self.path) + depth)
        if self.size > self.most:
            raise self._refusal(event, "too many values", f"at most {self.most:,}, repeated ones included")
        if self.deepest > MAX_DEPTH:
            raise self._refusal(event, "a value is nested too deeply", f"at most {MAX_DEPTH} levels")

    def _twice(self, first: int, event: Event) -> SettingError:
        setting = ".".join(self.path)
        lines = f" (lines {first} and {_line(event)})" if self._is_file() else ""
        return SettingError(f"{self.name + ': ' if self.name else ''}{setting} is given twice{lines}; allowed: once")

    def _refusal(self, event: Event, problem: str, allowed: str) -> SettingError:
        return SettingError(f"{self._where(event)}: {problem}; allowed: {allowed}")

    def _where(self, event: Event) -> str:
        line = f"line {_line(event)}" if self._is_file() else ""
        setting = without_middle(".".join(self.path), 120)
        return ": ".join(part for part in (self.name, ", ".join(part for part in (line, setting) if part)) if part)

    def _is_file(self) -> bool:
        return not self.name.startswith("--set")


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _problem(error: YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or reason_of(error)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{without_middle(' '.join(str(problem).split()), 300)}"


class _Representer(SafeRepresenter):
    """Writes texts and numbers so that YAML 1.1 and 1.2 read the same."""


def _text(representer: SafeRepresenter, text: str) -> Any:
    style = None if scalars.is_plain_text(text) else "'"
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _float(representer: SafeRepresenter, value: float) -> Any:
    text = repr(value).lower()
    if not math.isfinite(value):
        text = ".nan" if math.isnan(value) else text.replace("inf", ".inf")
    elif "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(str, _text)
_Representer.add_representer(float, _float)
