"""Puts sections of text, tables and figures together as one HTML page that needs nothing but itself."""

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
"""How figures answer to the pointer; their buttons are there while it is above them."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A button that changes figures.

    Attributes:
        label: What it says.
        data: What changes in each trace, as `Plotly.update` takes it.
        layout: What changes in the layout.
    """

    label: str
    data: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A figure with what is said of it.

    Attributes:
        figure: Drawn in the colours of `style`; the page gives it its template.
        title: Above it.
        note: Below it.
        wide: Whether it takes the whole width of the page; others stand side by side where there is room.
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
        id: What links to it are made of; its figures are called after it, as `accuracy-1`.
        title: Its heading.
        text: A paragraph below the heading.
        figures: Below the text.
        html: What stands between text and figures, such as tables of `fragments`.
        choices: Buttons above the figures, the first one being pressed.
    """

    id: str
    title: str
    text: str = ""
    figures: Sequence[Panel] = ()
    html: Markup = field(default_factory=Markup)
    choices: Sequence[Choice] = ()


def render(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Return a page that opens from disk, and in a frame that allows scripts alone.

    Args:
        title: Of the page.
        sections: In the order in which they are read.
        subtitle: A line below the title.
    """
    template = _environment().get_template("page.html.j2")
    return template.render(
        title=title, subtitle=subtitle, sections=sections, spec_of=spec_of,
        changes_of=changes_of, with_code=with_code,
        plotly_js=Markup(get_plotlyjs()), figure_template=as_json(style.TEMPLATE), config=as_json(CONFIG),
        dark_colors=as_json(style.DARK), css_light=_css(dark=False), css_dark=_css(dark=True),
    )  # fmt: skip


def spec_of(figure: go.Figure) -> Markup:
    """Return a figure as JSON that may stand in a page; arrays are in base64, the template is the page's."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return as_json({"data": content["data"], "layout": content["layout"]})


def changes_of(choices: Sequence[Choice]) -> Markup:
    """Return what buttons change as JSON that may stand in a page."""
    return as_json([{"data": dict(choice.data), "layout": dict(choice.layout)} for choice in choices])


def as_json(content: object) -> Markup:
    """Return JSON that may stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text))


def with_code(text: str) -> Markup:
    """Return a text as HTML; what stands between backticks is code.

    >>> str(with_code("`raysim report` & more"))
    '<code>raysim report</code> &amp; more'
    """
    code, parts = Markup("<code>{}</code>"), enumerate(text.split("`"))
    return Markup("").join(code.format(part) if at % 2 else escape(part) for at, part in parts)


@cache
def _environment() -> Environment:
    loader = PackageLoader("raysim.report", package_path="")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _css(dark: bool) -> Markup:
    """Return the colours as variables of a style sheet."""
    names = {"ink": style.INK, "muted": style.MUTED, "grid": style.GRID, "paper": style.PAPER, "raised": style.RAISED,
             "accent": style.BLUE, "warning": style.VERMILION}  # fmt: skip
    shown = {name: style.DARK.get(color, color) if dark else color for name, color in names.items()}
    return Markup(" ".join(f"--{name}: {color};" for name, color in shown.items()))
