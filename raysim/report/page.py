"""Put sections of text, tables and figures together as one HTML page that loads nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from raysim.report import style

CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
"""Plotly's configuration of every figure."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A button that changes figures.

    Attributes:
        label: The text on it.
        data: The changes of each trace, as `Plotly.update` expects them.
        layout: The changes of the layout.
    """

    label: str
    data: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A figure with a title and a note.

    Attributes:
        figure: The figure, in the colours of `style`; the page adds the template.
        title: The text above it.
        note: The text below it.
        wide: Whether it takes the whole width of the page; others are side by side where there is room.
        is_switched: Whether the choices of its section change it.
    """

    figure: go.Figure
    title: str = ""
    note: str = ""
    wide: bool = False
    is_switched: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A part of the page.

    Attributes:
        id: The anchor of links to it, and the first part of its figures' ids, as `accuracy-1`.
        title: The heading.
        text: A paragraph below the heading.
        figures: The figures at the end of the section.
        html: Tables and other pieces of `fragments` between text and figures.
        choices: Buttons above the figures; the first one is pressed.
    """

    id: str
    title: str
    text: str = ""
    figures: Sequence[Panel] = ()
    html: Markup = field(default_factory=Markup)
    choices: Sequence[Choice] = ()


def render(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Return a page that opens from disk, and in a frame that allows nothing but scripts.

    Args:
        title: The title of the page.
        sections: The sections, from top to bottom.
        subtitle: A line below the title.
    """
    template = _environment().get_template("page.html.j2")
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        spec_of=spec_of,
        changes_of=changes_of,
        with_code=with_code,
        plotly_js=Markup(get_plotlyjs()),
        figure_template=as_json(style.TEMPLATE),
        config=as_json(CONFIG),
        dark_colors=as_json(style.DARK),
        css_light=_css(dark=False),
        css_dark=_css(dark=True),
    )


def spec_of(figure: go.Figure) -> Markup:
    """Return a figure as JSON for a script element, without the template, which the page has once."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return as_json({"data": content["data"], "layout": content["layout"]})


def changes_of(choices: Sequence[Choice]) -> Markup:
    """Return the changes of all buttons as JSON for a script element."""
    return as_json([{"data": dict(choice.data), "layout": dict(choice.layout)} for choice in choices])


def as_json(content: object) -> Markup:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text))


def with_code(text: str) -> Markup:
    """Return a text as HTML, with everything between backticks as code.

    >>> str(with_code("`raysim report` & more"))
    '<code>raysim report</code> &amp; more'
    """
    code, parts = Markup("<code>{}</code>"), enumerate(text.split("`"))
    return Markup("").join(code.format(part) if index % 2 else escape(part) for index, part in parts)


@cache
def _environment() -> Environment:
    loader = PackageLoader("raysim.report", package_path="")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _css(dark: bool) -> Markup:
    """Return the colours as CSS variables."""
    names = {
        "ink": style.INK,
        "muted": style.MUTED,
        "grid": style.GRID,
        "paper": style.PAPER,
        "raised": style.RAISED,
        "accent": style.BLUE,
        "warning": style.VERMILION,
    }
    shown = {name: style.DARK.get(color, color) if dark else color for name, color in names.items()}
    return Markup(" ".join(f"--{name}: {color};" for name, color in shown.items()))
