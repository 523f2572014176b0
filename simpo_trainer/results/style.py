"""The look of all pictures: one set of colours, lines, marks and sizes."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Readers with a colour vision deficiency can tell these colours apart (Okabe and Ito). Grey replaces their yellow,
# which is too light for lines.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY = "#000000", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK, GREY)
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")
# The line for a value to compare with: a target, chance, zero.
GUIDE = {"color": "#555555", "linestyle": ":", "linewidth": 1.2}
# The line where the health monitor found something.
FINDING = {"color": "#C0392B", "linestyle": "--", "linewidth": 1.0, "alpha": 0.8}

# Width and height of a panel with its labels, inches.
_PANEL = (3.7, 3.1)
# Two labels of up to this many letters fit beside each other.
_SHORT = 18
# Height of a line of a legend, points.
_LEGEND_LINE = 12.5
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "legend.fontsize": 8,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    # Without this, the numbers of a panel would touch those of the next one.
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
}


@contextmanager
def picture(
    rows: int, columns: int, *, panel: tuple[float, float] = _PANEL, below: float = 0
) -> Iterator[tuple["Figure", Any]]:
    """Make a figure with a grid of panels; draw and save it inside the `with` block.

    Args:
        rows: the number of panels in a column.
        columns: the number of panels in a row.
        panel: width and height of a panel, inches.
        below: height for a legend below the panels, inches.
    """
    # Imported here: it takes a while, and most processes and runs never draw. No pyplot: it would start a window
    # system and keep figures for the whole program.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + below), dpi=150, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def line_style(number: int) -> dict[str, str]:
    """Returns the colour and the kind of the line with this number; the first 24 numbers differ."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def finish_panel(axis: Any, *, steps: int | None = None) -> None:
    """Set numbers and margins of a panel, and add a legend above it if it has more than one labelled line.

    Args:
        axis: the panel.
        steps: the last step of a panel over optimiser steps, which begins at step 0.
    """
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    axis.margins(x=0.02)
    if steps is not None:  # a single point would otherwise lie in a span of its own
        room = 0.02 * max(1, steps)
        axis.set_xlim(-room, max(1, steps) + room)
    if axis.get_xscale() == "linear" and axis.get_xlim()[1] - axis.get_xlim()[0] < 20:
        axis.xaxis.get_major_locator().set_params(integer=True)
    labels = axis.get_legend_handles_labels()[1]
    if len(labels) > 1:
        _add_legend_above(axis, labels)


def _add_legend_above(axis: Any, labels: list[str]) -> None:
    """Add a legend between title and panel, where it can hide neither curves nor guides."""
    columns = 1 if max(map(len, labels)) > _SHORT else 2 if len(labels) == 4 or max(map(len, labels)) > 9 else 3
    rows = -(-len(labels) // columns)
    axis.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, columnspacing=1, borderaxespad=0.1, frameon=False
    )
    axis.set_title(axis.get_title(), pad=8 + _LEGEND_LINE * rows)


def as_svg(figure: Any) -> str:
    """Returns a figure as SVG that needs no style of its own, so that a page can forbid all but its one sheet."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return re.sub(r' style="([^"]*)"', lambda found: "".join(map(_attribute, found.group(1).split(";"))), text)


def _attribute(declaration: str) -> str:
    """Returns a declaration of a style as an attribute, which needs no permission to style."""
    name, _, value = (part.strip() for part in declaration.partition(":"))
    if not value:
        return ""
    if name != "font":
        return f' {name}="{value}"'
    found = re.fullmatch(r"(?:(\d+|bold|italic) )?([\d.]+)px (.*)", value)
    if not found:
        return ""
    weight = f' font-weight="{found.group(1)}"' if found.group(1) else ""
    return f' font-size="{found.group(2)}"{weight} font-family="sans-serif"'
