"""`simpo compare`: the folders that it takes, the files that it writes, and the whole way from two runs."""

import csv
import io
import json
import math
import pickle
import re
from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console

from compared_runs import DPO, SIMPO, UNTRAINED, compared, drawn, evaluation, held_out, rows, scored, write_run
from models import random_pairs
from runs import make_trainer
from simpo_trainer.cli import app as cli
from simpo_trainer.errors import SimPOError
from simpo_trainer.quickstart import losses as quickstart_losses
from simpo_trainer.record.folders import MANIFEST, run_names

# ---- Folders ----


def test_what_is_no_run_is_told_with_what_is_there(tmp_path):
    run = write_run(tmp_path / "runs" / "sigmoid", SIMPO)

    def message(*folders):
        with pytest.raises(SimPOError) as error:
            compared(*folders)
        return str(error.value).replace(str(tmp_path), "")

    assert message(run.parent / "sigmod") == (
        "/runs/sigmod does not exist; compare needs the output folder of a run. Beside it, these are runs: "
        "/runs/sigmoid. Give one of them."
    )
    assert "/runs has no run_manifest.json" in message(run.parent)
    assert "it holds sigmoid/; " in message(run.parent)
    assert "In it, these are runs: /runs/sigmoid." in message(run.parent)
    (run / "checkpoint-30").mkdir()
    assert "it is empty; compare needs the output folder of a run. /runs/sigmoid is one: give that." in message(
        run / "checkpoint-30"
    )
    assert "trainer_state.json is a file; " in message(run / "trainer_state.json")
    assert "is given twice" in message(run, run / ".." / "sigmoid")
    lone = tmp_path / "lone" / "folder"
    lone.mkdir(parents=True)
    assert message(lone).endswith("Give the output_dir of a recipe that was trained.")
    for text in ('{"status": ', "[1]"):
        (run / MANIFEST).write_text(text)
        assert "sigmoid/run_manifest.json" in message(run) and "leave it out" in message(run)


def test_names_are_short_and_each_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    folders = [tmp_path / name for name in ("a/out", "b/out", "c/one", "ada/out", "d/b/out")]
    assert run_names(folders) == ["a/out", "b/out", "one", "out", "b/out (2)"]


@pytest.mark.slow
def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    folder = write_run(tmp_path / "run", SIMPO)
    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    compared(folder, output=tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


# ---- Files ----


@pytest.mark.slow
def test_files_hold_the_figures_and_no_path(tmp_path):
    log = [*SIMPO[:-1], evaluation(30, 0.75, -1.5, math.nan)]
    folders = write_run(tmp_path / "a" / "run", log), write_run(tmp_path / "b" / "run", DPO, method="dpo")
    output = tmp_path / "deep" / "out"
    _, text = compared(*folders, output=output)
    assert "Wrote comparison.png, comparison.json, comparison.csv" in text
    assert rows(text)["margin, nats per token"] == ["+nan", "-"]
    whole = json.loads((output / "comparison.json").read_text(), parse_constant=pytest.fail)
    first, second = whole["runs"]
    assert (first["name"], first["accuracy"], first["margin_nats_per_token"]) == ("a/run", 0.75, None)
    assert [point["step"] for point in second["evaluations"]] == [0, 15, 30]
    assert second["chosen_drift"] == {"unit": "nats per answer", "steps": [0, 15, 30], "changes": [0.0, -2.0, -5.0]}
    lines = list(csv.DictReader(io.StringIO((output / "comparison.csv").read_text())))
    assert [line["run"] for line in lines] == ["a/run", "b/run"]
    assert (lines[1]["margin_nats_per_answer"], lines[1]["margin_nats_per_token"]) == ("20.0", "")
    for file in output.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_picture_has_a_panel_for_each_unit(monkeypatch, tmp_path):
    dpo = write_run(tmp_path / "dpo", DPO, method="dpo")
    figure = drawn(monkeypatch, tmp_path, write_run(tmp_path / "simpo", SIMPO), dpo)
    panels = {(axis.get_title(), axis.get_ylabel()): axis for axis in figure.axes if axis.get_title()}
    found = {key: [list(line.get_ydata()) for line in axis.lines] for key, axis in panels.items()}
    assert found == {
        ("Held-out accuracy", "share of pairs won"): [[0.5, 0.875, 0.875, 0.75], [0.625, 0.5]],
        ("Held-out margin (chosen - rejected)", "nats per token"): [[0.25, 0.75, 1.25, 2.0]],
        ("Held-out margin (chosen - rejected)", "nats per answer"): [[10.0, 14.0, 20.0]],
        ("Chosen log-prob drift, held-out pairs", "nats per token"): [[0.0, 0.25, 0.5, -0.5]],
        ("Chosen log-prob drift, held-out pairs", "nats per answer"): [[0.0, -2.0, -5.0]],
    }
    assert {axis.get_xlabel() for axis in panels.values()} == {"optimiser step"}
    [legend] = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["simpo (per token)", "dpo (vs. reference)"]
    assert legend.get_title().get_text() == "run (pair won by log-prob ...)"
    # A run is drawn alike everywhere.
    colours = [{line.get_color() for line in axis.lines} for (_, unit), axis in panels.items() if "answer" in unit]
    assert len(set.union(*colours)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("more", [False, True])
def test_the_picture_has_every_method_in_the_same_panels(monkeypatch, tmp_path, more):
    """A panel of sums only shows what was measured more often than the untrained and the trained model."""
    ends = held_out(UNTRAINED, scored(0.625, 1.5, -1.25, step=30))
    dpo = write_run(tmp_path / "dpo", DPO if more else DPO[1:], method="dpo", held_out=ends)
    figure = drawn(monkeypatch, tmp_path, write_run(tmp_path / "simpo", SIMPO, held_out=ends), dpo)
    found = {(axis.get_title(), axis.get_ylabel()): len(axis.lines) for axis in figure.axes if axis.lines}
    sums = {("Held-out margin (chosen - rejected)", "nats per answer"): 1}
    assert found == {
        ("Held-out accuracy", "share of pairs won"): 2,
        ("Held-out margin (chosen - rejected)", "nats per token"): 2,
        ("Chosen log-prob drift, held-out pairs", "nats per token"): 2,
    } | (sums if more else {})
    accuracy = next(axis for axis in figure.axes if axis.get_title() == "Held-out accuracy")
    # Start and end alone are no course.
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "None"]
    assert all(axis.get_xlim()[0] <= 0 and axis.get_xlim()[1] >= 30 for axis in figure.axes if axis.lines)


@pytest.mark.slow
def test_many_runs_are_told_apart(monkeypatch, tmp_path):
    figure = drawn(monkeypatch, tmp_path, *(write_run(tmp_path / f"run{number}", SIMPO) for number in range(10)))
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 10
    assert len({line.get_color() for line in lines[:8]}) == len({line.get_marker() for line in lines[:8]}) == 8
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"run{number}" for number in range(10)]
    assert not figure.legends[0].get_title().get_text()


# ---- The whole way ----


def simpo(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        cli.main(["compare", *map(str, words)])
    return exit.value.code, capsys.readouterr()


@pytest.mark.slow
def test_two_real_runs(tmp_path, capsys):
    pairs, finals = random_pairs(16), []
    for loss in ("sigmoid", "hinge"):
        settings = {"loss_type": loss, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "max_steps": 2}
        trainer = make_trainer(tmp_path / loss, pairs[:8], eval_dataset=Dataset.from_list(pairs[8:]), **settings)
        trainer.train()
        trainer.save_state()
        finals.append([entry for entry in trainer.state.log_history if "eval_loss" in entry])
    code, printed = simpo(capsys, tmp_path / "sigmoid", tmp_path / "hinge", "--output", tmp_path / "out")
    assert code == 0
    table = rows(printed.out)
    assert table["method, loss"] == ["simpo sigmoid", "simpo hinge"]
    assert table["held-out accuracy, final"] == [f"{log[-1]['eval_rewards/accuracies']:.3f}" for log in finals]
    changes = [log[-1]["eval_logps/chosen"] - log[0]["eval_logps/chosen"] for log in finals]
    assert table["chosen drift, nats per token"] == [f"{change:+.3f}" for change in changes]
    assert [len(log) for log in finals] == [3, 3] and changes[0] != changes[1]
    assert all(re.fullmatch(r"[\d,]+ MiB", cell) for cell in table["peak memory, process"])
    assert all(cell.endswith(" s") for cell in table["training time"])
    assert "Warning:" not in printed.out
    assert (tmp_path / "out" / "comparison.png").is_file()


def test_errors_of_the_command(tmp_path, capsys):
    run = write_run(tmp_path / "run", SIMPO)
    (tmp_path / "file").touch()
    code, printed = simpo(capsys, run, "--output", tmp_path / "file" / "out")
    assert code == 1 and "cannot be written: Not a directory. Give --output a folder of yours." in printed.err
    code, printed = simpo(capsys, tmp_path / "nothing")
    assert code == 1 and "does not exist; compare needs the output folder of a run." in printed.err


def test_a_loss_of_ones_own_goes_by_its_class(tmp_path):
    run = write_run(tmp_path / "mine", SIMPO, own_loss="FlooredSimPOTrainer")
    assert rows(compared(run)[1])["method, loss"] == ["simpo FlooredSimPOTrainer"]


# ---- The quickstart's losses ----


@pytest.mark.slow
def test_each_loss_is_trained_in_a_folder_of_its_own_and_compared(tmp_path, monkeypatch):
    calls = []

    class Done:
        returncode = 0

    def train(words):
        calls.append(words)
        output = next(word for word in words if word.startswith("--output_dir=")).partition("=")[2]
        write_run(Path(output), SIMPO)
        return Done()

    monkeypatch.setattr(quickstart_losses.subprocess, "run", train)
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(SimPOError, match="has no model/; the runs need what prepare writes"):
        quickstart_losses.train_and_compare(tmp_path, ["sigmoid"], console)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    quickstart_losses.train_and_compare(tmp_path, ["hinge", "dpo"], console)
    assert {"--loss_type=hinge", "--beta=null"} < set(calls[0]) and "--method=dpo" not in calls[0]
    assert "--method=dpo" in calls[1] and not any(word.startswith(("--loss_type", "--beta")) for word in calls[1])
    assert f"--model_name_or_path={tmp_path / 'model'}" in calls[1]
    names = [run["name"] for run in json.loads((tmp_path / "losses" / "comparison.json").read_text())["runs"]]
    assert names == ["hinge", "dpo"]
    Done.returncode = 3
    with pytest.raises(SimPOError, match="training with orpo ended with status 3; its message is above"):
        quickstart_losses.train_and_compare(tmp_path, ["orpo"], console)
