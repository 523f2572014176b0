"""The picture of a run: what is drawn, and when there is nothing to draw."""

import matplotlib
import pytest

from pictures import saved_figures
from simpo_trainer.results.training_curves import training_curves


def train_entry(step, **values):
    return {
        "step": step,
        "loss": 1.0,
        "logps/margins": 0.1 * step,
        "logps/chosen": -1.0,
        "logps/rejected": -2.0,
    } | values


def eval_entry(step, prefix="eval_"):
    found = {"loss": 1.5, "rewards/accuracies": 0.75, "logps/margins": 0.25, "logps/chosen": -3.0}
    return {"step": step} | {prefix + name: value for name, value in found.items()}


def drawn(monkeypatch, tmp_path, log, **options):
    """The panels of the figure that is saved, by their titles."""
    figures = saved_figures(monkeypatch)
    assert training_curves(log, tmp_path / "curves.png", **options)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    return {axis.get_title(): axis for axis in figures[0].axes}


def line(axis, label):
    [found] = [line for line in axis.lines if line.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


@pytest.mark.slow
def test_training_and_evaluation_share_the_panels(monkeypatch, tmp_path):
    log = [
        train_entry(1, **{"rewards/accuracies": 0.5, "learning_rate": 1e-6, "grad_norm": 2.0}),
        eval_entry(1),
        train_entry(2, **{"rewards/accuracies": 0.625, "learning_rate": 5e-7, "grad_norm": 1.0}),
        {"step": 2, "train_loss": 1.0, "train_runtime": 3.0},
    ]
    panels = drawn(monkeypatch, tmp_path, log, target_margin=0.5)
    assert line(panels["Loss"], "train") == ([1, 2], [1.0, 1.0])
    assert line(panels["Loss"], "eval") == ([1], [1.5])
    margin = panels["Margin (chosen - rejected)"]
    assert line(margin, "train") == ([1, 2], [0.1, 0.2])
    assert line(margin, "eval") == ([1], [0.25])
    assert line(margin, "target 0.5")[1] == [0.5, 0.5]
    assert margin.get_ylabel() == "nats per token"
    both = panels["Log-probability of answers"]
    assert line(both, "chosen")[1] == [-1.0, -1.0]
    assert line(both, "rejected")[1] == [-2.0, -2.0]
    assert line(both, "chosen, eval")[1] == [-3.0]
    assert line(panels["Accuracy"], "train")[1] == [0.5, 0.625]
    assert line(panels["Learning rate"], "train")[1] == [1e-6, 5e-7]
    assert line(panels["Gradient norm"], "train")[1] == [2.0, 1.0]
    assert {axis.get_xlabel() for axis in panels.values()} == {"optimiser step"}


@pytest.mark.slow
def test_the_untrained_model_is_shown_at_step_0(monkeypatch, tmp_path):
    log = [train_entry(2), eval_entry(2)]
    start = {"logps/margins": 0.125, "logps/chosen": -1.5, "logps/rejected": -1.625}
    figures = {"accuracy": 0.5, "margin": 0.0625, "chosen": -1.25, "rejected": -1.3125}
    options = {"start": start, "held_out": {"eval": {"start": figures, "end": None}}}
    panels = drawn(monkeypatch, tmp_path, log, **options)
    margin, both = panels["Margin (chosen - rejected)"], panels["Log-probability of answers"]
    assert line(margin, "untrained, train") == ([0], [0.125])
    assert line(margin, "eval") == ([0, 2], [0.0625, 0.25])
    assert line(margin, "train")[0] == [2]
    assert line(panels["Accuracy"], "eval") == ([0, 2], [0.5, 0.75])
    assert line(both, "chosen, eval") == ([0, 2], [-1.25, -3.0])
    marks = [entry for entry in both.lines if entry.get_marker() == "*"]
    assert [list(mark.get_ydata()) for mark in marks] == [[-1.5], [-1.625]]


@pytest.mark.slow
def test_figures_per_token_are_not_drawn_beside_sums(monkeypatch, tmp_path):
    held_out = {"eval": {"start": {"accuracy": 0.5, "margin": 0.1, "chosen": -1.0, "rejected": -1.1}}}
    panels = drawn(monkeypatch, tmp_path, [eval_entry(2)], unit="nats", held_out=held_out)
    assert line(panels["Margin (chosen - rejected)"], "eval") == ([2], [0.25])
    # A measured evaluation of step 0 is shown as it is, once.
    log = [eval_entry(0), eval_entry(2)]
    panels = drawn(monkeypatch, tmp_path, log, held_out=held_out)
    assert line(panels["Margin (chosen - rejected)"], "eval") == ([0, 2], [0.25, 0.25])


@pytest.mark.slow
def test_several_evaluation_sets_have_lines_of_their_own(monkeypatch, tmp_path):
    log = [train_entry(1), eval_entry(1, "eval_easy_"), eval_entry(1, "eval_hard_")]
    loss = drawn(monkeypatch, tmp_path, log)["Loss"]
    assert {entry.get_label() for entry in loss.lines} >= {"eval easy", "eval hard"}
    colours = {entry.get_color() for entry in loss.lines}
    assert len(colours) == 3
    assert len({entry.get_marker() for entry in loss.lines if "eval" in entry.get_label()}) == 2


@pytest.mark.slow
def test_many_logs_are_shown_by_their_running_mean(monkeypatch, tmp_path):
    log = [train_entry(step, loss=float(step % 2), learning_rate=float(step)) for step in range(100)]
    panels = drawn(monkeypatch, tmp_path, log)
    means = line(panels["Loss"], "train (mean)")[1]
    assert len(means) == 100 and all(0.4 < mean < 0.6 for mean in means)
    assert means[0] == 0.5 and means[50] == 6 / 11
    single = [entry for entry in panels["Loss"].lines if entry.get_alpha()]
    assert list(single[0].get_ydata()) == [entry["loss"] for entry in log]
    assert line(panels["Learning rate"], "train")[1] == [float(step) for step in range(100)]


@pytest.mark.slow
def test_sums_have_another_unit(monkeypatch, tmp_path):
    panels = drawn(monkeypatch, tmp_path, [train_entry(1)], unit="nats")
    assert panels["Log-probability of answers"].get_ylabel() == "nats"


def test_nothing_to_draw_leaves_no_file(tmp_path):
    for log in ([], [{"step": 1, "train_runtime": 1.0}]):
        assert not training_curves(log, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_settings_of_the_program_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    training_curves([train_entry(1)], tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
