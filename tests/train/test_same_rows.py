"""How far training moved a model is measured on the same rows at its start and at its end, whatever trains it."""

import io
import json
import random
import signal
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

from models import random_pairs, random_ranked, tiny_model, word_tokenizer
from reference import in_float64, score_answer
from runs import PLAIN_STEPS, make_trainer
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.baselines.measure import mean_log_prob
from simpo_trainer.baselines.settings import ARGUMENTS
from simpo_trainer.baselines.sft import SFTBaseline
from simpo_trainer.results.command import compare
from simpo_trainer.train.same_rows import ROWS

BASELINES = {"dpo": DPOBaseline, "sft": SFTBaseline}
METHODS = ["simpo", "dpo", "sft"]


def uneven_pairs(count):
    """Pairs of which some have answers many times as long as others'."""
    draw = random.Random(5)
    lengths = [(draw.choice([1, 2, 40, 60]), draw.randint(1, 9)) for _ in range(count)]
    return [
        {
            "prompt_ids": [1, draw.randrange(3, 97)],
            "chosen_ids": [draw.randrange(3, 97) for _ in range(chosen)],
            "rejected_ids": [draw.randrange(3, 97) for _ in range(rejected)],
        }
        for chosen, rejected in lengths
    ]


# More than are measured.
PAIRS = uneven_pairs(70)
MEASURED = [PAIRS[place * len(PAIRS) // ROWS] for place in range(ROWS)]


def trainer_of(method, folder, rows=PAIRS, *, callbacks=(), **settings):
    """A trainer of a method on token rows."""
    if method == "simpo":
        return make_trainer(folder, rows, arguments={"callbacks": list(callbacks)}, **settings)
    tiny_model().save_pretrained(folder.parent / "untrained")
    of_machine = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    arguments = ARGUMENTS[method](
        output_dir=str(folder),
        max_length=None,
        remove_unused_columns=False,
        **{**PLAIN_STEPS, "learning_rate": 1e-3, **of_machine, **settings},
    )
    trainer = BASELINES[method](
        model=str(folder.parent / "untrained"),
        args=arguments,
        shared=SimPOConfig(output_dir=str(folder), use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        processing_class=word_tokenizer(),
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def record(folder):
    return json.loads((folder / "run_manifest.json").read_text())


def drift_of(folder):
    """The drift of a run's chosen answers as `simpo compare` has it, in the unit of the run; None for a dash."""
    found = compare([folder], None, Console(file=io.StringIO()))
    [figures] = found.figures
    units = [figures[f"chosen_drift_nats_per_{unit}"] for unit in ("token", "answer")]
    return next((change for change in units if change is not None), None)


def by_hand(model, rows, average):
    """The mean log-probability of chosen answers, one at a time in float64."""
    model = in_float64(model)
    with torch.no_grad():
        scores = [score_answer(model, row["prompt_ids"], row["chosen_ids"]) for row in rows]
    return sum(float(score.average if average else score.sum) for score in scores) / len(rows)


# ---- The drift ----


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_learns_nothing_drifts_nowhere(tmp_path, method):
    """Its first training log and its last are far from each other: they are of other pairs."""
    trainer = trainer_of(method, tmp_path / "run", max_steps=4, learning_rate=0.0)
    trainer.train()
    trainer.save_state()
    assert drift_of(tmp_path / "run") == 0
    logged = [entry["logps/chosen"] for entry in trainer.state.log_history if "logps/chosen" in entry]
    if method == "dpo":
        assert abs(logged[-1] - logged[0]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_drift_is_that_of_the_saved_model_on_the_same_rows(tmp_path, method):
    folder = tmp_path / "run"
    trainer = trainer_of(method, folder, max_steps=4)
    trainer.train()
    trainer.save_state()
    trainer.save_model(str(folder))
    average = method == "simpo"
    before = by_hand(tiny_model(), MEASURED, average)
    after = by_hand(AutoModelForCausalLM.from_pretrained(folder), MEASURED, average)
    assert abs(after - before) > 0.01
    assert drift_of(folder) == pytest.approx(after - before, rel=1e-3)
    found = record(folder)
    assert found["start"]["logps/chosen"] == pytest.approx(before, rel=1e-5)
    assert found["end"]["logps/chosen"] == pytest.approx(after, rel=1e-5)
    assert found["measured_rows"]["rows"] == ROWS and found["end"]["step"] == 4


@pytest.mark.slow
def test_the_unit_of_dpo_is_that_of_its_logs(tmp_path):
    trainer = trainer_of("dpo", tmp_path / "run", PAIRS[:8], per_device_eval_batch_size=8)
    found = trainer.measure(trainer.rows_to_measure(8))
    logged = trainer.evaluate(trainer.train_dataset)
    assert found == pytest.approx({name: logged[f"eval_{name}"] for name in found}, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_neither_weights_nor_mode(tmp_path, method, training):
    trainer = trainer_of(method, tmp_path / "run", PAIRS[:8])
    trainer.model.train(training)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.measure(trainer.rows_to_measure(8))
    assert trainer.model.training == training
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_ranked_answers_are_measured_as_they_are_trained_on(tmp_path, method):
    trainer = trainer_of(method, tmp_path / "run", random_ranked(6), max_steps=2)
    trainer.train()
    assert record(tmp_path / "run")["measured_rows"]["rows"] == len(trainer.train_dataset)
    assert drift_of(tmp_path / "run") is not None


@pytest.mark.slow
def test_the_first_rows_of_a_stream_are_measured(tmp_path):
    """Also by a run that goes on: the training reads further, and begins the stream anew meanwhile."""
    settings = {**PLAIN_STEPS, "max_steps": 12, "save_strategy": "steps", "save_steps": 6}
    settings |= {"max_length": 128, "max_prompt_length": 64}
    for checkpoint in (None, str(tmp_path / "checkpoint-6")):
        trainer = SimPOTrainer(
            tiny_model(),
            SimPOConfig(str(tmp_path), use_cpu=True, **settings),
            train_dataset=Dataset.from_list(PAIRS).to_iterable_dataset(),
            processing_class=word_tokenizer(),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(tmp_path))
    assert record(tmp_path)["resumed_from_step"] == 6
    before = by_hand(tiny_model(), PAIRS[:ROWS], average=True)
    after = by_hand(AutoModelForCausalLM.from_pretrained(tmp_path), PAIRS[:ROWS], average=True)
    assert drift_of(tmp_path) == pytest.approx(after - before, rel=1e-3)


def test_rows_that_are_not_an_answer_each_are_not_measured(tmp_path):
    trainer = trainer_of("sft", tmp_path / "run", PAIRS[:8], max_steps=1, completion_only_loss=False)
    trainer.train()
    found = record(tmp_path / "run")
    assert found["measured_rows"] is found["start"] is found["end"] is None
    assert drift_of(tmp_path / "run") is None


@pytest.mark.slow
def test_the_best_model_is_measured_where_it_is_the_one_that_is_saved(tmp_path):
    """It is of an earlier step than the last."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_worst", "greater_is_better": False}
    step = iter((1.0, 2.0, 3.0))
    trainer = make_trainer(
        tmp_path,
        PAIRS,
        eval_dataset=Dataset.from_list(PAIRS[:4]),
        arguments={"compute_metrics": lambda _: {"worst": next(step)}},
        **settings,
    )
    trainer.train()
    found = record(tmp_path)["end"]
    assert found["step"] == 1
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert found["logps/chosen"] == pytest.approx(by_hand(best, MEASURED, average=True), rel=1e-5)


# ---- Runs in parts ----


class Stop(TrainerCallback):
    """Asks for an end after a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.trainer.stop_request.number = signal.SIGINT


def interrupted(method, folder, **settings):
    """A run that was stopped after its second step of four."""
    stop = Stop(2)
    stop.trainer = trainer_of(method, folder, callbacks=[stop], max_steps=4, **settings)
    stop.trainer.train()
    assert stop.trainer.interrupted
    return record(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_keeps_the_start_of_its_first_part(tmp_path, method):
    folder = tmp_path / "run"
    first = interrupted(method, folder)
    assert first["start"] and first["end"] is None and drift_of(folder) is None
    trainer = trainer_of(method, folder, max_steps=4)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    trainer.save_model(str(folder))
    found = record(folder)
    assert found["resumed_from_step"] == 2 and found["start"] == first["start"]
    after = by_hand(AutoModelForCausalLM.from_pretrained(folder), MEASURED, method == "simpo")
    assert drift_of(folder) == pytest.approx(after - first["start"]["logps/chosen"], rel=1e-3)


@pytest.mark.slow
def test_the_last_checkpoint_of_the_folder_is_the_runs_own(tmp_path):
    first = interrupted("simpo", tmp_path)
    trainer_of("simpo", tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    assert record(tmp_path)["start"] == first["start"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["other folder", "set aside", "other rows", "other unit", "no manifest", "torn"])
def test_the_start_of_another_run_is_not_taken(tmp_path, change):
    folder, rows, settings = tmp_path / "run", PAIRS, {}
    interrupted("simpo", folder)
    checkpoint = folder / "checkpoint-2"
    if change == "other folder":
        interrupted("simpo", tmp_path / "other")
        folder = tmp_path / "other"
    elif change == "set aside":
        checkpoint = checkpoint.rename(folder / "_earlier-checkpoint-2")
    elif change == "other rows":
        rows, settings = random_pairs(70), {"allow_changes": True}
    elif change == "other unit":
        settings = {"average_log_prob": False, "allow_changes": True}
    elif change == "no manifest":
        (folder / "run_manifest.json").unlink()
    else:
        (folder / "run_manifest.json").write_text('{"start": ')
    trainer_of("simpo", folder, rows, max_steps=4, **settings).train(resume_from_checkpoint=str(checkpoint))
    found = record(folder)
    assert found["status"] == "finished" and found["end"] and found["start"] is None
    assert drift_of(folder) is None


# ---- Several processes ----


class Counting(nn.Module):
    """Stands for a model: the log-probability of a scored token is its id, and runs are counted."""

    runs = 0

    def forward(self, input_ids, labels, **kwargs):
        assert not self.training
        self.runs += 1
        return SimpleNamespace(log_probs=input_ids.masked_fill(labels == -100, 0).float())


@pytest.mark.parametrize("count", [1, 4, 5, 7, 8])
def test_processes_run_the_model_equally_often_and_count_each_text_once(count):
    """Otherwise those that gather weights together would wait for each other."""
    texts = [{"input_ids": [90, 3 + number], "labels": [-100, 3 + number]} for number in range(count)]
    totals, runs = [], []
    for rank in range(2):
        model = Counting()
        accelerator = SimpleNamespace(
            num_processes=2,
            process_index=rank,
            device=torch.device("cpu"),
            reduce=lambda sums, reduction: totals.append(sums) or torch.ones_like(sums),
        )
        trainer = SimpleNamespace(
            accelerator=accelerator,
            model_wrapped=model,
            args=SimpleNamespace(train_batch_size=2),
            compute_loss_context_manager=torch.no_grad,
        )
        mean_log_prob(trainer, texts)
        runs.append(model.runs)
    assert runs[0] == runs[1] == -(-count // 4)
    assert sum(totals).tolist() == [[sum(text["input_ids"][1] for text in texts), count]]
