"""Colours, line styles and the template of all figures, for light and dark pages and for colour-blind readers."""

from typing import Any

INK, MUTED, GRID, PAPER, RAISED = "#1F2328", "#59636E", "#DFE3E8", "#FFFFFF", "#F6F8FA"
"""Text, secondary text, lines, the page, and raised boxes."""
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
WONG = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK)
"""Colours that colour-blind people can distinguish (Wong, Nature Methods 8, 441, 2011)."""
DARK = {
    INK: "#E6EDF3", MUTED: "#9EA7B3", GRID: "#30363D", PAPER: "#0D1117", RAISED: "#161B22",
    BLUE: "#3C9BE0", VERMILION: "#F0803C", GREEN: "#2EBD91", SKY: "#9BD6F7", BLACK: "#FFFFFF",
}  # fmt: skip
"""The colours of dark pages by those of light ones; the others stay. Figures are written in light colours."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")
SEQUENTIAL = "Cividis"
"""A colour scale that is read alike with every kind of colour vision."""

_AXIS = {
    "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": MUTED, "tickcolor": MUTED, "automargin": True,
    "title": {"standoff": 8}, "separatethousands": True,
}  # fmt: skip
TEMPLATE: dict[str, Any] = {
    "layout": {
        "autosize": True,
        "height": 330,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"},
        "colorway": list(WONG),
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": INK}},
        "hoverlabel": {"bgcolor": RAISED, "bordercolor": GRID, "font": {"color": INK}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        "coloraxis": {"colorbar": {"outlinewidth": 0, "thickness": 12}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}
"""The layout that all figures share."""


def color(index: int) -> str:
    """Return the colour of the line with an index, counted from 0."""
    return WONG[index % len(WONG)]


def line(index: int, width: float = 2.0) -> dict[str, Any]:
    """Return the style of the line with an index; neighbours differ by colour and by dash."""
    return {"color": color(index), "dash": DASHES[index % len(DASHES)], "width": width}


def over_rounds(figure: Any, rounds: int) -> None:
    """Label the x axis of a figure over rounds, with whole rounds only."""
    figure.update_xaxes(title_text="round", tickformat=",d", dtick=1 if rounds <= 12 else None)


def mark_target(figure: Any, at: float, target: str) -> None:
    """Draw a thin horizontal line at a target.

    Args:
        figure: A figure with the primary metric as its y axis.
        at: The target in the units of that axis.
        target: The target as it is written.
    """
    figure.add_hline(
        y=at,
        line={"color": MUTED, "width": 1, "dash": "dot"},
        annotation_text=f"target {target}",
        annotation_position="bottom left",
        annotation_font={"color": MUTED, "size": 10},
    )


def faded(shown: str, opacity: float) -> str:
    """Return a transparent colour for bands, which is the same on light and dark pages.

    >>> faded("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(shown[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
