"""How all pictures here look."""

from typing import Any


def finish_panel(axis: Any) -> None:
    """What the panels of all pictures share: grid, frame, numbers, and a legend for more than one labelled line."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    axis.margins(x=0.02)
    if axis.get_xlim()[1] - axis.get_xlim()[0] < 20:
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(frameon=False, fontsize=8)
