"""`simpo compare`: what stands side by side is measured alike, and what is not is said."""

import csv
import io
import json

import pytest

from compared_runs import DPO, SETS, SIMPO, UNTRAINED, compared, drawn, evaluation, held_out, rows, scored, write_run
from simpo_trainer.record.conditions import Conditions
from simpo_trainer.results.comparison_picture import comparison_picture


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
