"""Contents of a report's page: its sections, its text, and its figures as numbers."""

import base64
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np

SECTIONS = ["headline", "accuracy", "pruning", "coverage", "timeline", "partition", "diagnostics", "config"]


@dataclass
class Page(HTMLParser):
    """A page, read as a browser would."""

    html: str
    sections: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    choices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._figure, self._is_choice = "", False
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if tag == "section":
            self.sections.append(given["id"])
        self._is_choice |= given.get("class") == "choices"
        if given.get("class", "").split(" ")[0] == "figure":
            self._figure = given["id"]
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            if self._is_choice:
                self.choices[self.sections[-1]] = json.loads(data)
                self._is_choice = False
            elif self._figure:
                self.figures[self._figure] = json.loads(data)
                self._figure = ""
        elif self.sections:
            self.words[self.sections[-1]] = self.words.get(self.sections[-1], "") + data

    def traces(self, figure: str) -> dict[str, dict[str, Any]]:
        """The lines of a figure by name; arrays as NumPy has them."""
        return {trace.get("name", str(at)): decoded(trace) for at, trace in enumerate(self.figures[figure]["data"])}


def decoded(value: Any) -> Any:
    """Plotly's typed arrays as NumPy's."""
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        shape = value.get("shape")
        return array.reshape([int(size) for size in str(shape).split(",")]) if shape else array
    if isinstance(value, dict):
        return {key: decoded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decoded(each) for each in value]
    return value
