"""Make pieces of HTML that are placed between text and figures: cards, tables, folded text, images."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raysim.report.page import Section
from raysim.tracking.run_reader import RunReader


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure: its name, its value, and a remark."""

    name: str
    value: str
    remark: str = ""


def cards(each: Sequence[Card]) -> Markup:
    """Return cards side by side."""
    one = Markup(
        '<div class="card"><div class="what">{}</div><div class="value">{}</div><div class="more">{}</div></div>'
    )
    return Markup('<div class="cards">{}</div>').format(
        Markup("").join(one.format(card.name, card.value, card.remark) for card in each)
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> Markup:
    """Return a table, which scrolls where it is wider than the page.

    Args:
        headings: One per column; if all are empty the table has no head.
        rows: Cells as text.
        text_columns: The number of columns from the left that hold text; the others hold numbers.
    """

    def line(cells: Sequence[str], tag: str) -> Markup:
        classes = [' class="number"' if index >= text_columns else "" for index in range(len(cells))]
        made = [
            Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup(kind), cell)
            for kind, cell in zip(classes, cells, strict=True)
        ]
        return Markup("<tr>{}</tr>").format(Markup("").join(made))

    head = line(headings, "th") if any(headings) else Markup("")
    body = Markup("").join(line(row, "td") for row in rows)
    return Markup('<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>').format(head, body)


def folded(summary: str, text: str) -> Markup:
    """Return preformatted text that is shown when its summary is clicked."""
    return Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(summary, text)


def scale(colors: Sequence[str], least: str, most: str, signs: Sequence[tuple[str, str, str]] = ()) -> Markup:
    """Return the legend of a colour scale: a bar with labels at its ends, then signs.

    Args:
        colors: From left to right.
        least: The label of the first colour.
        most: The label of the last colour.
        signs: Each sign with its colour and its meaning.
    """
    bar = Markup('<span class="bar" style="background: linear-gradient(to right, {})"></span>').format(
        ", ".join(colors)
    )
    one = Markup('<span class="sign"><span style="color: {1}">{0}</span> {2}</span>')
    explained = Markup("").join(one.format(*each) for each in signs)
    return Markup('<div class="scale"><span>{}</span>{}<span>{}</span>{}</div>').format(least, bar, most, explained)


def paragraph(text: str) -> Markup:
    """Return a paragraph."""
    return Markup("<p>{}</p>").format(text)


def image(data: bytes, description: str) -> Markup:
    """Return a PNG that is embedded in the page."""
    from base64 import b64encode

    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(description, b64encode(data).decode())


def section(run: RunReader) -> Section:
    """Return the complete settings, folded, and a table of ids, digests and versions."""
    metadata = run.metadata
    found = {
        "MLflow run": metadata.get("run_id") or None,
        "MLflow store": metadata.get("tracking_uri"),
        "folder": metadata.get("output_dir"),
        "data (SHA-256)": metadata.get("data_sha256"),
        "partition (SHA-256)": metadata.get("partition_sha256"),
        "final parameters (SHA-256)": run.summary.get("params_sha256"),
        "rows that no client owns": metadata.get("leftover_rows"),
        **metadata.get("environment", {}),
    }
    rows = [(name, str(value)) for name, value in found.items() if value is not None]
    html = folded("All settings: config.yaml, with which raysim run repeats this run", run.settings_text)
    return Section("config", "Settings and versions", html=html + table(("", ""), rows, text_columns=2))
