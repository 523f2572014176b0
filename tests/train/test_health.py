"""The health monitor in whole runs: what goes wrong on purpose is told, recorded, and can stop the run."""

import json
import logging

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from models import random_pairs
from runs import make_trainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.loss.in_words import watched_in_words
from simpo_trainer.loss.losses import LOSSES
from simpo_trainer.record.findings import Finding
from simpo_trainer.train.health import HealthMonitor

TRAIN, HELD_OUT = random_pairs(64), random_pairs(40, seed=1)
# A rate at which a model this small moves in a few steps.
SETTINGS = {"optim": "adamw_torch", "learning_rate": 3e-3, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 2}


def trained(folder, rows=TRAIN, held_out=HELD_OUT, **settings):
    trainer = make_trainer(
        folder, rows, eval_dataset=held_out and Dataset.from_list(held_out), **{**SETTINGS, **settings}
    )
    trainer.train()
    return trainer


def recorded(folder):
    found = json.loads((folder / "run_manifest.json").read_text())["findings"]
    return {each["rule"]: Finding.of(each) for each in found}


def test_a_ruinous_rate_is_told_while_the_run_goes_on_and_stands_in_the_record(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "simpo_trainer"):
        trained(tmp_path, learning_rate=3.0)
    found = recorded(tmp_path)
    assert {"chosen low", "loss rises"} & found.keys()
    worst = next(each for each in found.values() if each.collapse)
    assert worst.step <= 8 and f"health: {worst.line}" in caplog.messages


def test_a_finding_is_told_again_only_when_it_grows_worse(tmp_path):
    trainer = trained(tmp_path, max_steps=1)
    monitor = trainer.health
    monitor._forget()
    tell = [Finding("chosen falls", 1, "eval", None, "a", "b", "c", amount) for amount in (0.5, 0.8, 1.1, 1.3)]
    assert [bool(monitor._tell([each])) for each in tell] == [True, False, True, False]
    assert len(monitor.findings) == 2
    # The same fall in other words is no news.
    assert not monitor._tell([Finding("both fall", 2, "eval", None, "a", "b", "c", 1.4)])


def test_tiny_settings_are_told_before_the_first_step(tmp_path, caplog):
    class NoStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING, "simpo_trainer"):
        trainer = make_trainer(
            tmp_path,
            TRAIN[:1] * 8,
            eval_dataset=TRAIN[:2],
            beta=0.1,
            per_device_train_batch_size=1,
            arguments={"callbacks": [NoStep()]},
            max_steps=3,
        )
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    found = recorded(tmp_path)
    assert {"tiny beta", "tiny batch", "repeated pairs", "not held out"} <= found.keys()
    assert "1 of 2 rows of eval are training rows too" in found["not held out"].seen
    # The settings have warned of beta already.
    assert sum("beta is" in line or "beta=" in line for line in caplog.messages) == 1
    assert any(line.startswith("health: Step 0, settings: a step has 1 pair;") for line in caplog.messages)


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_collapse_stops_the_run_with_a_checkpoint(tmp_path, evaluates):
    settings = {} if evaluates else {"eval_strategy": "no", "held_out": None}
    trainer = trained(
        tmp_path, learning_rate=3.0, max_steps=40, save_strategy="steps", stop_on_collapse=True, **settings
    )
    step = trainer.state.global_step
    assert (
        trainer.interrupted
        and step < 40
        and trainer.health.collapse in [each.line for each in recorded(tmp_path).values()]
    )
    assert (tmp_path / f"checkpoint-{step}").is_dir()
    with pytest.raises(SimPOError, match="stopped at step"):
        trainer.finish()


def test_without_held_out_pairs_the_training_pairs_are_watched(tmp_path):
    trained(tmp_path, held_out=None, eval_strategy="no", learning_rate=3.0)
    assert {each.where for each in recorded(tmp_path).values()} - {"settings"} == {"train"}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_loss_is_said_to_be_judged_by_is_what_judges_it(tmp_path, loss):
    trainer = make_trainer(tmp_path, TRAIN, loss_type=loss)
    words = watched_in_words(trainer.args.objective)
    assert ("and on the target margin" in words) == (trainer.health._aim() is not None)
    assert ("of held-out pairs alone" in words) == (trainer.log_prob_unit != "nats per token")


def test_sums_are_not_judged_as_averages(tmp_path):
    """Training logs of a loss on sums are in nats; its held-out pairs are measured per token."""
    trainer = trained(tmp_path, loss_type="cpo", learning_rate=1e-5)
    assert trainer.log_prob_unit != "nats per token"
    assert trainer.health._training_figures() == [] and trainer.health._aim() is None
    steps, *figures = trainer.health.evaluated["eval"][-1]
    assert steps == 8 and -10 < figures[0] < 0
    assert recorded(tmp_path).keys() <= {"accuracy stuck"}  # the pairs are random


@pytest.mark.slow
def test_a_run_that_goes_on_remembers_what_was_told(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 3.0}
    whole = trained(tmp_path / "whole", **settings)
    begun = trained(tmp_path / "half", **settings, max_steps=8)
    kept = [each for each in begun.health.findings if each["step"] <= 4]
    again = make_trainer(tmp_path / "half", TRAIN, eval_dataset=Dataset.from_list(HELD_OUT), **{**SETTINGS, **settings})
    again.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert again.health.findings[: len(kept)] == kept
    assert [each["rule"] for each in again.health.findings] == [each["rule"] for each in whole.health.findings]


def test_the_monitor_costs_no_step_its_pace(tmp_path):
    """Between evaluations it looks at numbers that are there already: it asks nothing of the model."""
    trainer = trained(tmp_path, max_steps=2)
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.health.on_log(trainer.args, trainer.state, trainer.control, {"loss": 1.0})
    assert not calls and isinstance(trainer.health, HealthMonitor)
