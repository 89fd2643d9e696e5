"""Pieces of HTML between text and figures: cards, tables, what folds."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raysim.report.page import Section
from raysim.report.source import Recorded


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure: what it is, its value, what more there is to say."""

    what: str
    value: str
    more: str = ""


def cards(each: Sequence[Card]) -> Markup:
    """Return headline figures side by side."""
    one = Markup(
        '<div class="card"><div class="what">{}</div><div class="value">{}</div><div class="more">{}</div></div>'
    )
    return Markup('<div class="cards">{}</div>').format(
        Markup("").join(one.format(card.what, card.value, card.more) for card in each)
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> Markup:
    """Return a table, which scrolls by itself where it is too wide.

    Args:
        headings: One per column; all empty = none are shown.
        rows: Cells as text.
        text_columns: How many columns from the left hold text; the others hold numbers.
    """

    def line(cells: Sequence[str], tag: str) -> Markup:
        classes = [' class="number"' if place >= text_columns else "" for place in range(len(cells))]
        made = [
            Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup(kind), cell)
            for kind, cell in zip(classes, cells, strict=True)
        ]
        return Markup("<tr>{}</tr>").format(Markup("").join(made))

    head = line(headings, "th") if any(headings) else Markup("")
    body = Markup("").join(line(row, "td") for row in rows)
    return Markup('<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(head, body)


def folded(summary: str, text: str) -> Markup:
    """Return a text as it stands, that is shown when its summary is clicked."""
    return Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(summary, text)


def scale(colors: Sequence[str], least: str, most: str, signs: Sequence[tuple[str, str, str]] = ()) -> Markup:
    """Return a bar of colours between what its ends stand for.

    Args:
        colors: From left to right.
        least: What the first stands for.
        most: What the last stands for.
        signs: Each with its colour and its meaning.
    """
    bar = Markup('<span class="bar" style="background: linear-gradient(to right, {})"></span>').format(
        ", ".join(colors)
    )
    one = Markup('<span class="sign"><span style="color: {1}">{0}</span> {2}</span>')
    meant = Markup("").join(one.format(*each) for each in signs)
    return Markup('<div class="scale"><span>{}</span>{}<span>{}</span>{}</div>').format(least, bar, most, meant)


def paragraph(text: str) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>").format(text)


def image(data: bytes, description: str) -> Markup:
    """Return a PNG that is part of the page."""
    from base64 import b64encode

    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(description, b64encode(data).decode())


def section(recorded: Recorded) -> Section:
    """Return the complete settings, folded, and which run it is, with versions and digests."""
    noted = recorded.noted
    told = {
        "MLflow run": noted.get("run_id") or None,
        "MLflow store": noted.get("tracking_uri"),
        "folder": noted.get("output_dir"),
        "data (SHA-256)": noted.get("data_sha256"),
        "partition (SHA-256)": noted.get("partition_sha256"),
        "final parameters (SHA-256)": recorded.summary.get("params_sha256"),
        "rows that no client owns": noted.get("leftover_rows"),
        **noted.get("environment", {}),
    }
    rows = [(name, str(value)) for name, value in told.items() if value is not None]
    html = folded("All settings: config.yaml, from which raysim run repeats the run", recorded.yaml)
    return Section("config", "Settings and versions", html=html + table(("", ""), rows, text_columns=2))
