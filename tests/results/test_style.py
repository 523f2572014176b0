"""All pictures look alike, and nothing in them overlaps or is cut off."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pictures import check_apart, saved_figures
from simpo_trainer.loss.losses import LOSSES
from simpo_trainer.results import style
from simpo_trainer.results.loss_curves import plot_losses
from simpo_trainer.results.training_curves import training_curves

PACKAGE = Path(__file__).parents[2] / "simpo_trainer"


def test_colours_and_sizes_are_in_one_place():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "style.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"#[0-9A-Fa-f]{6}\b|import matplotlib|from matplotlib|figsize|dpi=", text), path


def test_lines_differ():
    assert len({tuple(style.line_style(number).values()) for number in range(24)}) == 24
    assert len(set(style.COLOURS)) == len(set(style.MARKERS)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("names", [["sigmoid"], list(LOSSES)])
def test_losses_lie_apart_from_their_legend(monkeypatch, tmp_path, names):
    figures = saved_figures(monkeypatch)
    plot_losses(names, tmp_path / "losses.png", {})
    [figure] = figures
    left, right = figure.axes
    assert [text.get_text().partition(",")[0] for text in figure.legends[0].get_texts()] == names
    lines = [line for line in left.lines if len(line.get_xdata()) > 2]
    assert [line.get_color() for line in lines] == [style.line_style(n)["color"] for n in range(len(names))]
    assert len(lines) == len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
    assert left.get_ylim()[1] <= 6 and right.get_ylim()[0] >= -6


@pytest.mark.slow
@pytest.mark.parametrize("sets", [["eval_"], ["eval_a_", "eval_b_"], ["eval_from_a_long_named_set_", "eval_other_"]])
def test_legends_lie_apart_from_the_lines(monkeypatch, tmp_path, sets):
    names = ("loss", "logps/margins", "logps/chosen", "logps/rejected", "rewards/accuracies")
    log = []
    for step in range(1, 101):
        log.append({"step": step} | {name: (-1) ** step + step / 100 for name in names} | {"grad_norm": 12345.678})
        if step % 20 == 0:
            log += [{"step": step} | {prefix + name: step / 30 for name in names} for prefix in sets]
    figures = saved_figures(monkeypatch)
    assert training_curves(log, tmp_path / "curves.png", target_margin=0.5)
    assert figures[0].axes[2].get_legend() is not None


def test_overlaps_are_found():
    figure = Figure()
    figure.add_axes((0.1, 0.1, 0.4, 0.8))
    check_apart(figure)
    figure.add_axes((0.4, 0.1, 0.4, 0.8))
    with pytest.raises(AssertionError):
        check_apart(figure)
    cut = Figure()
    cut.add_axes((0, 0, 1, 1))
    with pytest.raises(AssertionError):
        check_apart(cut)
