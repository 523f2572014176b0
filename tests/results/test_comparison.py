"""`simpo compare`: what stands side by side is measured alike, and what is not is said."""

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

from models import random_pairs
from pictures import saved_figures
from runs import make_trainer
from simpo_trainer.cli import app as cli
from simpo_trainer.errors import SimPOError
from simpo_trainer.quickstart import losses as quickstart_losses
from simpo_trainer.record.conditions import Conditions
from simpo_trainer.record.folders import MANIFEST, run_names
from simpo_trainer.results.command import compare
from simpo_trainer.results.comparison_picture import comparison_picture

SETS = {"train": {"rows": 20, "tokens_sha256": "a" * 64}, "eval": {"rows": 8, "tokens_sha256": "b" * 64}}


def evaluation(step, accuracy, chosen, rejected, *, ours=True, prefix="eval_"):
    """An entry of the log as SimPO logs it, or with the names that trl has."""
    found = {"rewards/accuracies": accuracy, "logps/chosen": chosen, "logps/rejected": rejected, "runtime": 0.1 + step}
    if ours:
        found |= {"logps/margins": chosen - rejected, "lengths/chosen": 3.0, "lengths/rejected": 12.5}
    return {"step": step} | {prefix + name: value for name, value in found.items()}


def training(step, chosen):
    return {"step": step, "loss": 0.5, "rewards/accuracies": 0.5, "logps/chosen": chosen, "logps/rejected": -1.5}


def write_run(folder, log, *, state="trainer_state.json", method="simpo", loss="sigmoid", runtime=75.0, **manifest):
    """An output folder with a manifest and a log.

    Args:
        state: where the log is, or None for nowhere.
        manifest: parts of the manifest, in the place of those of a finished run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if runtime is not None:
        log = [*log, {"step": 30, "train_runtime": runtime}]
    metrics = {name: value for entry in log for name, value in entry.items() if name != "step"}
    unit = {"log_prob_unit": "nats per token"} if method == "simpo" else {}
    whole = {
        "status": "finished",
        "method": method,
        method: {"loss_type": loss},
        "peak_memory": {"bytes": 3 * 2**30, "of": "accelerator"},
        "model": {"label": "org/base"},
        "data": {"sets": SETS},
        "batch": {"optimiser_steps": 30},
        "results": {"steps": 30, "metrics": metrics},
    }
    (folder / MANIFEST).write_text(json.dumps(whole | unit | manifest))
    if state:
        (folder / state).parent.mkdir(exist_ok=True)
        (folder / state).write_text(json.dumps({"log_history": log, "global_step": 30}))
    return folder


SIMPO = [
    evaluation(0, 0.5, -1.0, -1.25),
    training(10, -0.875),
    evaluation(10, 0.875, -0.75, -1.5),
    training(20, -0.75),
    evaluation(20, 0.875, -0.5, -1.75),
    training(30, -0.5),
    evaluation(30, 0.75, -1.5, -3.5),
]
DPO = [
    evaluation(0, 0.0, -20.0, -30.0, ours=False),
    evaluation(15, 0.625, -22.0, -36.0, ours=False),
    evaluation(30, 0.5, -25.0, -45.0, ours=False),
]


def compared(*folders, output=None):
    """The comparison, and what was printed."""
    console = Console(file=io.StringIO(), width=80)
    found = compare(folders, output, console)
    return found, console.file.getvalue()


def rows(text):
    """The cells of the printed table by the titles of its rows."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in lines}


def test_figures_of_a_run(tmp_path):
    found, text = compared(write_run(tmp_path / "first", SIMPO))
    assert rows(text) == {
        "status": ["finished"],
        "method, loss": ["simpo sigmoid"],
        "held-out accuracy, final": ["0.750"],
        "held-out accuracy, best (step)": ["0.875 (10)"],  # the earliest of equals
        "margin, nats per token": ["+2.000"],
        "chosen log-prob, nats per token": ["-1.500"],
        "chosen drift, nats per token": ["-0.500"],
        "tokens, chosen / rejected": ["3.0 / 12.5"],
        "training time": ["1 min 15 s"],
        "peak memory, accelerator": ["3,072 MiB"],
    }
    assert "held-out pairs, from the untrained model to the last evaluation." in text
    assert "Conditions: optimiser steps 30, training pairs 20." in text
    assert "Before training: held-out accuracy 0.500, margin +0.250 nats per token, chosen log-prob -1.000" in text
    assert "Warning:" not in text


def test_sums_of_log_probs_never_stand_beside_averages(tmp_path):
    folders = write_run(tmp_path / "simpo", SIMPO), write_run(tmp_path / "dpo", DPO, method="dpo", loss=["sigmoid"])
    found, text = compared(*folders)
    table = rows(text)
    assert table["method, loss"] == ["simpo sigmoid", "dpo sigmoid"]
    assert table["margin, nats per token"] == ["+2.000", "-"]
    assert table["margin, nats per answer"] == ["-", "+20.000"]
    assert table["chosen drift, nats per token"] == ["-0.500", "-"]
    assert table["chosen drift, nats per answer"] == ["-", "-5.000"]
    assert table["tokens, chosen / rejected"] == ["3.0 / 12.5", "-"]
    assert table["held-out accuracy, final"] == ["0.750", "-"]
    assert table["own accuracy, final"] == ["-", "0.500"]
    assert table["own accuracy, pair won by log-prob"] == ["-", "vs. reference"]
    assert (
        "Own accuracy: as the method measures it, by the log-prob raised more over the reference model's (dpo)." in text
    )
    # A model that is its own reference wins and loses no pair.
    assert [point.accuracy for point in found.runs[1].evaluations] == [None, 0.625, 0.5]


@pytest.mark.parametrize(
    ("manifest", "margins"),
    [
        ({"log_prob_unit": "nats"}, ("-", "+2.000")),
        ({"log_prob_unit": None, "simpo": {"average_log_prob": False}}, ("-", "+2.000")),
        ({"log_prob_unit": None, "simpo": {"average_log_prob": True}}, ("+2.000", "-")),
    ],
)
def test_the_unit_is_that_of_the_manifest(tmp_path, manifest, margins):
    other = write_run(tmp_path / "dpo", DPO, method="dpo")
    _, text = compared(write_run(tmp_path / "run", SIMPO, **manifest), other)
    table = rows(text)
    assert (table.get("margin, nats per token", ["-"])[0], table["margin, nats per answer"][0]) == margins


def test_the_drift_is_measured_alike_for_all(tmp_path):
    late = [entry for entry in SIMPO if entry["step"]]
    start = {"start": {"logps/chosen": -2.0, "rewards/accuracies": 0.5}, "end": {"step": 29, "logps/chosen": -1.75}}
    both = write_run(tmp_path / "both", SIMPO, **start)
    measured = write_run(tmp_path / "measured", late, **start)
    plain = write_run(tmp_path / "plain", late)
    found, text = compared(both, measured)
    assert "training pairs, the same up to 64 rows under the untrained and the trained model." in text
    assert [drift.changes for drift in found.drifts] == [(0.0, 0.25), (0.0, 0.25)]
    assert [drift.steps for drift in found.drifts] == [(0, 29), (0, 29)]
    found, text = compared(both, measured, plain)
    assert (
        "held-out pairs, from the first evaluation to the last (both from step 0, measured from step 10, plain" in text
    )
    assert [drift.changes[-1] for drift in found.drifts] == [-0.5, -0.75, -0.75]


@pytest.mark.slow
@pytest.mark.parametrize("half", [{}, {"start": {"logps/chosen": -2.0}}, {"end": {"step": 30, "logps/chosen": -1.75}}])
def test_training_logs_are_of_other_pairs_each_and_tell_no_drift(monkeypatch, tmp_path, half):
    """Where the same pairs were not measured twice: a dash, nothing in the files, and no line in the picture."""
    once = [entry for entry in SIMPO if "loss" in entry or entry["step"] == 30]
    folder = write_run(tmp_path / "once", once, **half)
    found, text = compared(folder, output=tmp_path / "out")
    assert not any("drift" in title for title in rows(text)) and "Drift" not in text
    assert (found.drifts, found.drift_measure) == ((None,), None)
    [run] = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert run["chosen_drift"] is run["chosen_drift_nats_per_token"] is None
    [line] = csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text()))
    assert line["chosen_drift_nats_per_token"] == line["chosen_drift_nats_per_answer"] == ""
    figure = drawn(monkeypatch, tmp_path, folder)
    assert [axis.get_title() for axis in figure.axes if axis.lines] == [
        "Held-out accuracy",
        "Held-out margin (chosen - rejected)",
    ]
    _, text = compared(folder, write_run(tmp_path / "measured", SIMPO))
    assert rows(text)["chosen drift, nats per token"] == ["-", "-0.500"]


def test_what_was_not_measured_is_a_dash(tmp_path):
    sft = write_run(tmp_path / "sft", [{"step": 30, "eval_loss": 1.0}], method="sft", peak_memory=None, runtime=None)
    found, text = compared(sft)
    table = rows(text)
    assert set(table) >= {"held-out accuracy, final", "tokens, chosen / rejected", "training time"}
    assert all(cells == ["-"] for title, cells in table.items() if title not in ("status", "method, loss"))
    assert not comparison_picture(found, tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_other_data_or_models_are_told(tmp_path):
    def with_sets(name, train, held_out, label="org/base"):
        sets = {"train": {"tokens_sha256": train}, "eval": {"rows": 7, "tokens_sha256": held_out}}
        return write_run(tmp_path / name, SIMPO, data={"sets": sets}, model={"label": label})

    one, two = with_sets("one", "1" * 64, "2" * 64), with_sets("two", "1" * 64, "2" * 64)
    assert "Warning:" not in compared(one, two)[1]
    other, unknown = with_sets("other", "3" * 64, "4" * 64, "org/new"), with_sets("unknown", "1" * 64, None)
    _, text = compared(one, other, two, unknown)
    assert (
        "Warning: The held-out pairs differ, so accuracy, margin and drift do not compare: one, two: 7 pairs, hash "
        "22222222; "
        "other: 7 pairs, hash 44444444." in text
    )
    assert "Warning: It is unknown whether the held-out pairs of unknown are the same: no hash" in text
    assert "Warning: The training pairs differ: one, two, unknown: hash 11111111; other: hash 33333333." in text
    assert "Warning: The runs started from different models: one, two, unknown: org/base; other: org/new." in text


def test_other_training_pairs_are_told_where_the_drift_is_over_them(tmp_path):
    def measured(name, train):
        sets = {"train": {"tokens_sha256": train}, "eval": {"tokens_sha256": train}}
        points = {"start": {"logps/chosen": -2.0}, "end": {"step": 30, "logps/chosen": -1.75}}
        return write_run(tmp_path / name, SIMPO[-1:], data={"sets": sets}, **points)

    _, text = compared(measured("one", "1" * 64), measured("two", "2" * 64))
    assert "Warning: The held-out pairs differ, so accuracy and margin do not compare: one: hash" in text
    assert "Warning: The training pairs differ, so drift does not compare: one: hash 11111111" in text


def test_a_run_that_did_not_end_shows_its_last_checkpoint(tmp_path):
    """What an earlier run left in the folder is not its own."""
    folder = write_run(tmp_path / "run", DPO)
    (folder / "eval_results.json").write_text(json.dumps({"eval_rewards/accuracies": 0.99, "eval_runtime": 1}))
    unfinished = {"status": "running", "results": {"steps": 10, "metrics": {}}, "peak_memory": None}
    for step in (9, 10):
        log = [entry for entry in SIMPO if entry["step"] <= step]
        write_run(folder, log, state=f"checkpoint-{step}/trainer_state.json", runtime=None, **unfinished)
    _, text = compared(folder)
    table = rows(text)
    assert table["held-out accuracy, final"] == ["0.875"] and table["training time"] == ["-"]
    assert table["status"] == ["running or killed, step 10 of 30"]
    write_run(folder, SIMPO, status="interrupted", state="checkpoint-30/trainer_state.json")
    _, text = compared(folder)
    assert rows(text)["status"] == ["interrupted, step 30 of 30"]
    assert "Warning: Not finished: run (interrupted, step 30 of 30)." in text


def test_a_log_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path):
    folder = write_run(tmp_path / "run", DPO)
    write_run(folder, SIMPO, runtime=80.0, state=None)
    found, text = compared(folder)
    assert rows(text)["held-out accuracy, final"] == ["0.750"]
    assert [point.step for point in found.runs[0].evaluations] == [30]


def test_the_last_evaluation_may_come_after_the_log(tmp_path):
    folder = write_run(tmp_path / "run", SIMPO[:5])
    metrics = {k: v for entry in SIMPO for k, v in entry.items() if k != "step"} | {"train_runtime": 75.0}
    write_run(folder, SIMPO, state=None, results={"steps": 30, "metrics": metrics})
    found, _ = compared(folder)
    assert [point.step for point in found.runs[0].evaluations] == [0, 10, 20, 30]
    # The best model, loaded at the end, is evaluated once more; that is no point of the last step.
    best = {"settings": {"load_best_model_at_end": True}}
    write_run(folder, SIMPO, state=None, results={"steps": 30, "metrics": metrics}, recipe=best)
    found, text = compared(folder)
    assert [point.step for point in found.runs[0].evaluations] == [0, 10, 20]
    assert rows(text)["held-out accuracy, final"] == ["0.750"]


def test_results_files_serve_where_the_manifest_has_no_metrics(tmp_path):
    folder = write_run(tmp_path / "run", [], state=None, results={"steps": 30})
    for kind, entry in (("train", {"train_runtime": 7000}), ("eval", SIMPO[-1])):
        (folder / f"{kind}_results.json").write_text(json.dumps(entry))
    table = rows(compared(folder)[1])
    assert table["held-out accuracy, final"] == ["0.750"] and table["training time"] == ["1 h 56 min"]


def test_each_held_out_set_is_a_column(tmp_path):
    log = [evaluation(30, 0.5, -1.0, -2.0, prefix="eval_easy_"), evaluation(30, 0.25, -1.0, -1.5, prefix="eval_hard_")]
    sets = {"eval_easy": {"tokens_sha256": "1" * 64}, "eval_hard": {"tokens_sha256": "2" * 64}}
    found, text = compared(write_run(tmp_path / "run", log, data={"sets": sets}))
    assert [run.name for run in found.runs] == ["run: easy", "run: hard"]
    assert rows(text)["held-out accuracy, final"] == ["0.500", "0.250"]
    assert "The held-out pairs differ" in text


def test_memory_of_a_process_and_of_an_accelerator_are_two_figures(tmp_path):
    process = write_run(tmp_path / "cpu", SIMPO, peak_memory={"bytes": 2**30, "of": "process"}, resumed_from_step=5)
    _, text = compared(process, write_run(tmp_path / "gpu", SIMPO))
    table = rows(text)
    assert table["peak memory, process"] == ["1,024 MiB", "-"]
    assert table["peak memory, accelerator"] == ["-", "3,072 MiB"]
    assert "Memory of a process: all its resident memory" in text
    assert "of the last part of resumed runs: cpu from step 5." in text


# ---- What is measured per token under every method ----


def scored(accuracy, margin, chosen, **more):
    return {"accuracy": accuracy, "margin": margin, "chosen": chosen, "rejected": chosen - margin, **more}


def held_out(start, end):
    return {"eval": {"tokens_sha256": "c" * 64, "pairs": 8, "start": start, "end": end}}


UNTRAINED = scored(0.5, 0.25, -1.0)


def test_every_method_stands_in_the_same_rows(tmp_path):
    """The record of the pairs comes before the log, whose unit for DPO is another, and which SFT does not have."""
    sft_sets = {name: SETS[name] | {"pairs_sha256": "d" * 64} for name in SETS}
    folders = (
        write_run(tmp_path / "simpo", SIMPO, held_out=held_out(UNTRAINED, scored(0.75, 2.0, -1.5, step=30))),
        write_run(
            tmp_path / "dpo", DPO, method="dpo", held_out=held_out(UNTRAINED, scored(0.625, 1.5, -1.25, step=30))
        ),
        write_run(
            tmp_path / "sft",
            [{"step": 30, "eval_loss": 1.0}],
            method="sft",
            data={"sets": sft_sets},
            held_out=held_out(UNTRAINED, scored(0.875, 0.5, -0.5, step=30)),
        ),
    )
    found, text = compared(*folders)
    table = rows(text)
    assert table["held-out accuracy, final"] == ["0.750", "0.625", "0.875"]
    assert table["margin, nats per token"] == ["+2.000", "+1.500", "+0.500"]
    assert table["chosen log-prob, nats per token"] == ["-1.500", "-1.250", "-0.500"]
    assert table["chosen drift, nats per token"] == ["-0.500", "-0.250", "+0.500"]
    assert "chosen drift, nats per answer" not in table and table["margin, nats per answer"] == ["-", "+20.000", "-"]
    assert table["own accuracy, final"] == ["-", "0.500", "-"]
    assert "Before training, the same for all: held-out accuracy 0.500, margin +0.250 nats per token, chosen" in text
    assert "held-out pairs differ" not in text and "training pairs differ" in text
    assert [[point.step for point in run.per_token] for run in found.runs] == [[0, 10, 20, 30], [0, 30], [0, 30]]


def test_the_figures_are_of_the_model_that_was_saved(tmp_path):
    """The best one, of step 10: what came later is no part of its drift."""
    run = write_run(tmp_path / "run", SIMPO, held_out=held_out(UNTRAINED, scored(0.875, 0.75, -0.75, step=10)))
    found, text = compared(run)
    assert rows(text)["held-out accuracy, final"] == ["0.875"]
    assert (found.drifts[0].steps, found.drifts[0].changes) == ((0, 10), (0.0, 0.25))


def test_conversations_have_no_pairs(tmp_path):
    sets = {"train": {"rows": 20, "pairs": 20, "tokens_sha256": "e" * 64, "pairs_sha256": None}}
    talks = write_run(tmp_path / "talks", [], method="sft", data={"sets": sets}, held_out={})
    _, text = compared(write_run(tmp_path / "simpo", SIMPO), talks)
    assert rows(text)["training pairs"] == ["20 (hash aaaaaaaa)", "-"]
    assert "talks: trained on conversations, which hold no pairs to score; hence the dashes." in text
    assert "Warning: Trained on conversations, not on the pairs of the other runs: talks." in text
    assert text.count("Warning:") == 1


# ---- Conditions, and what is not fair ----

CONDITIONS = {
    "training": {"learning_rate": 5e-7},
    "model": {"label": "org/base", "adapter": None},
    "batch": {"global": 4, "per_device": 2, "processes": 1, "accumulation": 2, "optimiser_steps": 30},
    "seeds": {"seed": 42},
    "simpo": {"loss_type": "sigmoid", "beta": 2.0},
    "target_margin": 0.5,
}
LORA = {"label": "org/base", "adapter": {"peft_type": "LORA", "r": 16}}


def test_conditions_that_differ_have_a_row_and_others_a_line(tmp_path):
    one = write_run(tmp_path / "one", [*SIMPO, {"step": 30, "epoch": 6.0}], **CONDITIONS)
    other = CONDITIONS | {"seeds": {"seed": 7}, "simpo": {"loss_type": "hinge", "beta": 2.5}, "target_margin": None}
    two = write_run(tmp_path / "two", [*SIMPO, {"step": 30, "epoch": 6.0}], **other)
    found, text = compared(one, two, output=tmp_path / "out")
    table = rows(text)
    assert (table["seed"], table["beta"], table["target margin"]) == (["42", "7"], ["2", "2.5"], ["0.5", "-"])
    assert (
        "Same for all: optimiser steps 30, pairs seen 120, pairs a step 4, epochs 6, learning rate 5e-07, weights "
        "trained full, training pairs 20 (the same)." in text
    )
    # Only method and settings of the loss differ: nothing is unfair.
    assert "Warning:" not in text
    [first, _] = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    [line, _] = csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text()))
    for name, value in {"pairs_seen": 120, "learning_rate": 5e-7, "adapter": "full", "training_data": "same"}.items():
        assert first[name] == value and line[name] == str(value)


def test_a_manifest_without_conditions_is_read(tmp_path):
    bare = write_run(tmp_path / "older", SIMPO, batch={}, data={}, results={})
    _, text = compared(bare, write_run(tmp_path / "newer", SIMPO, **CONDITIONS))
    table = rows(text)
    for title in ("optimiser steps", "pairs seen", "learning rate", "weights trained", "seed", "target margin"):
        assert table[title][0] == "-" and table[title][1] != "-"


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"results": {"steps": 15}}, "have seen different numbers of pairs, so more training may be all that"),
        ({"model": LORA}, "Some runs train an adapter and others the whole model: run: all weights; other: LoRA r 16."),
        (
            {"method": "sft", "sft": {"loss_type": "nll"}},
            "other had a learning rate of preference training, 5e-07, at which SFT learns next to nothing; it usually",
        ),
    ],
    ids=["budget", "weights", "rate"],
)
def test_what_is_not_fair_is_told_and_nothing_else(tmp_path, change, warning):
    sets = {name: found | {"pairs_sha256": found["tokens_sha256"]} for name, found in SETS.items()}
    base = CONDITIONS | {"data": {"sets": sets}}
    run = write_run(tmp_path / "run", SIMPO, **base)
    _, text = compared(run, write_run(tmp_path / "other", SIMPO, **{**base, **change}))
    assert text.count("Warning:") == 1 and warning in text


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("dpo", {}),
        ("sft", {"training": {"learning_rate": 2e-5}}),
        ("dpo", {"model": LORA | {"adapter": {"peft_type": "LORA", "r": 8}}}),
        # A step more or less at the end of an epoch is no other budget.
        ("simpo", {"results": {"steps": 3000, "metrics": {"num_pairs_seen": 11999}}}),
    ],
)
def test_another_method_alone_is_fair(tmp_path, method, change):
    sets = {name: found | {"pairs_sha256": found["tokens_sha256"]} for name, found in SETS.items()}
    base = CONDITIONS | {"data": {"sets": sets}}
    if "model" in change:
        base |= {"model": LORA}
    if method == "simpo":
        base |= {"results": {"steps": 3000, "metrics": {"num_pairs_seen": 12000}}}
    run = write_run(tmp_path / "run", SIMPO, **base)
    _, text = compared(run, write_run(tmp_path / "other", SIMPO, **{**base, "method": method, method: {}, **change}))
    assert "Warning:" not in text


def test_pairs_seen_by_a_trainer_of_trl_count_the_smaller_last_batch():
    """20 pairs in batches of 2 x 2 x 2: three steps an epoch, the last of four pairs."""
    batch = {"global": 8, "per_device": 2, "processes": 2, "accumulation": 2}
    for steps, seen in ((1, 8), (2, 16), (3, 20), (4, 28), (6, 40)):
        manifest = {"method": "dpo", "batch": batch, "results": {"steps": steps}, "data": {"sets": SETS}}
        assert Conditions.of(manifest, {}, []).pairs_seen == seen
    dropped = {"recipe": {"settings": {"dataloader_drop_last": True}}, "data": {"sets": {"train": {"rows": 19}}}}
    assert Conditions.of(manifest | dropped, {}, []).pairs_seen == 48  # three epochs of 16: 4 batches, 2 steps
    # A packed row holds several texts.
    assert Conditions.of({**manifest, "method": "sft", "sft": {"packing": True}}, {}, []).pairs_seen is None


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


def drawn(monkeypatch, tmp_path, *folders):
    """The figure that is saved."""
    figures = saved_figures(monkeypatch)
    compared(*folders, output=tmp_path / "drawn")
    assert (tmp_path / "drawn" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return figures[0]


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
