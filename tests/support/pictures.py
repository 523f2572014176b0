"""Figures as they are saved, and whether their parts lie apart."""

import itertools

from matplotlib.figure import Figure


def saved_figures(monkeypatch):
    """Returns a list to which every figure is added when it is saved, after a check that its parts lie apart."""
    figures = []
    save = Figure.savefig

    def add(figure, path):
        save(figure, path)
        check_apart(figure)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", add)
    return figures


def check_apart(figure):
    """Check that no panel, with its labels, and no legend reaches into another or over the edge of the figure."""
    parts = [axis.get_tightbbox() for axis in figure.axes if axis.axison or axis.get_legend()]
    parts += [legend.get_tightbbox() for legend in figure.legends]
    assert parts
    for part in parts:
        assert 0 <= part.x0 < part.x1 <= figure.bbox.x1 and 0 <= part.y0 < part.y1 <= figure.bbox.y1, part
    for one, other in itertools.combinations(parts, 2):
        assert not one.overlaps(other), (one, other)
    for axis in figure.axes:
        if axis.get_legend() and axis.axison:
            box = axis.get_legend().get_window_extent()
            # Outside the panel it hides neither curves nor guides.
            assert not box.overlaps(axis.get_window_extent()), axis.get_title()
            assert not box.overlaps(axis.title.get_window_extent()), axis.get_title()
