"""All pictures look alike, and nothing in them overlaps or is cut off."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pictures import check_apart, saved_figures
from simpo_trainer.loss.losses import LOSSES
from simpo_trainer.results import style
from simpo_trainer.results.loss_curves import curve, plot_losses
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
    panels = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title().partition(",")[0] for axis in panels] == names
    for name, axis in zip(names, panels, strict=True):
        drawn = [(line.get_color(), list(line.get_ydata())) for line in axis.lines if len(line.get_xdata()) > 2]
        expected = [] if name == "sigmoid" else [(style.GREY, values) for values in curve("sigmoid", {})[1:]]
        assert drawn == [*expected, *((style.BLUE, values) for values in curve(name, {})[1:])]
    assert len({axis.get_ylim() for axis in panels}) == 1
    assert "margin (chosen - rejected), nats per token" in {axis.get_xlabel() for axis in panels}
    # Each entry of the legend shows the line that it names.
    [legend] = figure.legends
    told = {
        text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert told.pop("sigmoid, the default, for comparison", style.GREY) == style.GREY and set(told.values()) == {
        style.BLUE
    }


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


def test_a_legend_on_a_panel_is_found():
    figure = Figure()
    axis = figure.add_axes((0.2, 0.2, 0.6, 0.6))
    axis.plot([0, 1], [0, 1], label="one")
    axis.legend()
    with pytest.raises(AssertionError):
        check_apart(figure)


@pytest.mark.parametrize("points", [[20], pytest.param([1, 20], marks=pytest.mark.slow)])
def test_a_panel_over_steps_begins_at_the_first(monkeypatch, tmp_path, points):
    """Also where it has a single point, which has no span of its own."""
    figures = saved_figures(monkeypatch)
    log = [{"step": step, "loss": 1.0, "logps/margins": 0.5} for step in points]
    assert training_curves(log, tmp_path / "curves.png", target_margin=0.5)
    for axis in figures[0].axes:
        low, high = axis.get_xlim()
        assert -1 < low <= 0 and 20 <= high < 21


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
