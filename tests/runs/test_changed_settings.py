"""A run that goes on with other settings: refused by default, and in force from that step on where it is allowed."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from models import random_pairs, tiny_model
from runs import make_trainer, weights_of
from simpo_trainer.errors import SimPOError
from simpo_trainer.record.seal import read_seal
from simpo_trainer.train.changes import OwnSettings
from simpo_trainer.train.checkpoints import set_aside_earlier

pytestmark = pytest.mark.slow
ROWS = random_pairs(16)
SETTINGS = {
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 4,
}


def dataset():
    return Dataset.from_list(ROWS[:4])


def trainer_of(folder: Path, rows=ROWS, *, model=None, arguments=None, **changed):
    return make_trainer(folder, rows, model=model, arguments=arguments, **{**SETTINGS, **changed})


def saved(folder: Path, step: int = 4):
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The folder of a run of eight steps with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("before")
    trainer_of(folder).train()
    return folder


def goes_on(folder: Path, before: Path, rows=ROWS, **changed):
    trainer = trainer_of(folder, rows, **changed)
    trainer.train(resume_from_checkpoint=str(before / "checkpoint-4"))
    return trainer


def rates(trainer):
    return {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"beta": 3.0}, "beta was 2.0 and is 3.0"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0 and is 0.1"),
        ({"num_train_epochs": 3}, "num_train_epochs was 2 and is 3"),
        ({"seed": 7}, "seed was 42 and is 7"),
        ({"per_device_train_batch_size": 2}, "pairs of a step was 4 and is 2"),
        ({"rows": ROWS[:12]}, "the training pairs are not the same"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_in_python_too(tmp_path, before, changed, message):
    with pytest.raises(
        SimPOError, match=f"checkpoint-4 is a checkpoint of a run that .*{message}.*allow_changes: true"
    ):
        goes_on(tmp_path, before, **changed)


def test_the_new_schedule_counts_from_the_step_that_was_reached(tmp_path, before):
    """After the checkpoint the rates are those of a run that had the new settings from its start."""
    changed = {"learning_rate": 3e-3, "lr_scheduler_type": "linear", "warmup_steps": 2, "num_train_epochs": 3}
    whole = trainer_of(tmp_path / "whole", **changed)
    whole.train()
    trainer = goes_on(tmp_path / "on", before, allow_changes=True, **changed)
    assert rates(trainer)[4] == rates(trainer_of_log(before))[4] != rates(whole)[4]
    assert {step: rate for step, rate in rates(trainer).items() if step > 4} == {
        step: rate for step, rate in rates(whole).items() if step > 4
    }
    assert max(rates(trainer)) == 12


def trainer_of_log(folder: Path):
    """An object with the log of the last checkpoint of a run."""

    class Found:
        class state:
            log_history = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]

    return Found


def test_a_learning_rate_of_zero_leaves_the_weights_of_the_checkpoint(tmp_path, before):
    trainer = goes_on(tmp_path, before, allow_changes=True, learning_rate=0.0)
    assert trainer.state.global_step == 8
    assert all((weight == saved(before)[name]).all() for name, weight in weights_of(trainer).items())


def test_every_setting_of_the_optimiser_is_the_new_one(tmp_path, before):
    new = {"weight_decay": 0.3, "adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 1e-5}
    trainer = goes_on(tmp_path, before, allow_changes=True, **new)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.7, 0.8), 1e-5)}


def test_allowing_changes_without_one_changes_nothing(tmp_path, before):
    trainer = goes_on(tmp_path, before, allow_changes=True)
    assert all((weight == saved(before, 8)[name]).all() for name, weight in weights_of(trainer).items())
    assert trainer.changes == []


def test_the_record_says_from_which_step_what_counts(tmp_path, before, caplog):
    trainer = goes_on(tmp_path, before, allow_changes=True, beta=3.0, seed=7, save_steps=2)
    settings = {"beta": [2.0, 3.0], "seed": [42, 7]}
    assert trainer.changes == [{"step": 4, "settings": settings}]
    assert "From step 4 on, settings that change the result are new: " in caplog.text
    assert "beta was 2.0 and is 3.0" in caplog.text and "The pairs are those that a run" in caplog.text
    # A later part of the run, with another change. The checkpoint is there because intervals count too, which
    # transformers takes from the checkpoint before.
    later = trainer_of(tmp_path / "later", beta=3.0, seed=7, sft_weight=0.5, allow_changes=True)
    later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert later.changes == [
        {"step": 4, "settings": settings},
        {"step": 6, "settings": {"sft_weight": [0.0, 0.5]}},
    ]
    later.finish()
    assert json.loads((tmp_path / "later" / "run_manifest.json").read_text())["changes"] == later.changes
    assert read_seal(tmp_path / "later")["changes"] == later.changes
    card = (tmp_path / "later" / "README.md").read_text()
    assert "| changed at step 4 | seed was 42 and is 7; beta was 2.0 and is 3.0 |" in card
    assert "| changed at step 6 | sft_weight was 0.0 and is 0.5 |" in card


def test_what_changes_nothing_is_told_and_taken(tmp_path, before, caplog):
    caplog.set_level(logging.INFO)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    goes_on(tmp_path, before, logging_steps=3, **parts)
    [line] = [each for each in caplog.messages if each.startswith("Since step 4")]
    for told in ("logging_steps was 1 and is 3", "per_device_train_batch_size was 4 and is 2"):
        assert told in line
    assert str(tmp_path) not in line and "output_dir" not in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": "sgd"}, "optim was adamw_torch and is sgd"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type was cosine and is reduce_lr_on_plateau"),
        ({"arguments": {"peft_config": LoraConfig(task_type="CAUSAL_LM")}}, "adapter was null"),
    ],
)
def test_what_the_state_does_not_fit_is_refused_even_so(tmp_path, before, changed, message):
    evaluated = {"eval_strategy": "steps", "eval_steps": 4} if "lr_scheduler_type" in changed else {}
    given = {"eval_dataset": ROWS[:4]} if evaluated else {}
    with pytest.raises(SimPOError, match=f"whose state does not fit this one: .*{message}") as found:
        goes_on(tmp_path, before, allow_changes=True, **changed, **evaluated, **given)
    assert "allow_changes" not in str(found.value)


def test_an_adapter_belongs_to_its_base_model(tmp_path):
    adapter = {"arguments": {"peft_config": LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")}}
    trainer_of(tmp_path, model=tiny_model(seed=1), **adapter).train()
    with pytest.raises(SimPOError, match="whose state does not fit this one: the base model is not the same"):
        goes_on(tmp_path / "on", tmp_path, model=tiny_model(seed=2), allow_changes=True, **adapter)


def test_a_run_goes_on_in_the_process_that_has_trained_it(tmp_path, before):
    """The model of the trainer is the trained one then: it is another than the one that the run began with."""
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.changes == []
    assert all((weight == saved(before, 8)[name]).all() for name, weight in weights_of(trainer).items())


def test_the_best_by_another_metric_is_forgotten(tmp_path, caplog):
    trainer_of(tmp_path, eval_dataset=dataset(), **BEST).train()
    trainer = trainer_of(
        tmp_path / "on",
        eval_dataset=dataset(),
        arguments={"callbacks": [EarlyStoppingCallback(early_stopping_patience=9)]},
        metric_for_best_model="rewards/margins",
        allow_changes=True,
        **BEST,
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "The best checkpoint so far is forgotten" in caplog.text
    margins = {
        entry["step"]: entry["eval_rewards/margins"]
        for entry in trainer.state.log_history
        if "eval_rewards/margins" in entry and entry["step"] > 4
    }
    assert trainer.state.best_metric == max(margins.values())


def test_an_evaluation_changes_nothing_of_the_training(tmp_path):
    """With dropout each step depends on the random numbers that were drawn before it."""
    trained = []
    for folder, evaluated in (("without", {}), ("with", {"eval_strategy": "steps", "eval_steps": 2})):
        trainer = trainer_of(
            tmp_path / folder,
            model=tiny_model(attention_dropout=0.3),
            eval_dataset=dataset() if evaluated else None,
            disable_dropout=False,
            **evaluated,
        )
        trainer.train()
        trained.append(weights_of(trainer))
    assert all((weight == trained[1][name]).all() for name, weight in trained[0].items())


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}


def run_with_best(folder: Path, checkpoint: Path | None = None):
    """A run whose evaluation is the best at its second of four checkpoints."""
    trainer = trainer_of(folder, eval_dataset=dataset(), **BEST)
    real = trainer.evaluate

    def evaluate(*args, **given):
        found = real(*args, **given)
        found["eval_loss"] = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}[trainer.state.global_step]
        return found

    trainer.evaluate = evaluate
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def test_the_best_checkpoint_is_found_where_it_was_set_aside(tmp_path, caplog):
    """Another run has put a checkpoint of its own in its place meanwhile."""
    out = tmp_path / "out"
    best = saved(Path(run_with_best(out).args.output_dir))
    for step in (2, 4, 6, 8):
        (out / f"checkpoint-{step}").rename(out / f"_earlier-checkpoint-{step}")
    trainer_of(out, max_steps=4, learning_rate=1e-2, save_steps=4).train()
    set_aside_earlier(out, out / "_earlier-checkpoint-6")  # as the command does
    trainer = run_with_best(out, out / "_earlier-checkpoint-6")
    assert trainer.state.best_model_checkpoint == str(out / "_earlier-checkpoint-4")
    assert all((weight == best[name]).all() for name, weight in weights_of(trainer).items())
    assert "is gone" not in caplog.text


def test_a_best_checkpoint_that_is_gone_is_told(tmp_path, caplog):
    out = tmp_path / "out"
    run_with_best(out)
    shutil.rmtree(out / "checkpoint-4")
    trainer = run_with_best(out, out / "checkpoint-6")
    assert "checkpoint-4, is gone: the best of those to come is taken" in caplog.text
    assert trainer.state.best_model_checkpoint == str(out / "checkpoint-8")


def test_a_training_that_a_callback_has_ended_stays_ended(tmp_path):
    """Killed behind its last checkpoint, it would have gone on to the next evaluation."""
    stopping = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=1)]}
    settings = {**BEST, "learning_rate": 0.0, "num_train_epochs": 3, "eval_dataset": dataset()}
    first = trainer_of(tmp_path, arguments=stopping, **settings)
    first.train()
    assert first.state.global_step == 4
    again = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=1)]}
    trainer = trainer_of(tmp_path, arguments=again, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, trainer.state.num_train_epochs) == (4, 3)
    assert trainer.state.best_metric == first.state.best_metric


def test_a_callback_that_is_new_can_save_its_state(tmp_path, before):
    """transformers ends with a KeyError at the next checkpoint, also on one of an earlier version of this package."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 4, "eval_dataset": dataset()}
    stopping = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=9) for _ in range(2)]}
    trainer = goes_on(
        tmp_path, before, arguments=stopping, metric_for_best_model="loss", allow_changes=True, **evaluated
    )
    states = trainer.state.stateful_callbacks["EarlyStoppingCallback"]
    assert [state["args"]["early_stopping_patience"] for state in states] == [9, 9]


def test_own_settings_leave_a_schedule_without_a_formula_alone():
    class Optimizer:
        param_groups = [{"lr": 1.0, "weight_decay": 0.0, "params": []}]

    optimizer, plateau = Optimizer(), object()
    own = OwnSettings(optimizer, plateau)
    optimizer.param_groups[0] |= {"lr": 0.5, "weight_decay": 0.1}
    own.restore(optimizer, plateau)
    assert optimizer.param_groups == [{"lr": 0.5, "weight_decay": 0.0, "params": []}]
