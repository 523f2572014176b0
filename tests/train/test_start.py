"""What is measured and said before the first step."""

import json

import pytest

from models import random_pairs, tiny_model
from reference import in_float64, score_pairs
from runs import assert_same_run, assert_same_weights, make_trainer, train_log, weights_of
from simpo_trainer.train.start import StartReport

ROWS = random_pairs(22)


@pytest.mark.slow
def test_measuring_the_start_leaves_the_run_as_it_was(tmp_path):
    """The starting margin is that of pairs from all over the set; weights, gradients and later steps are untouched."""
    trainer = make_trainer(tmp_path / "measured", ROWS)
    before = weights_of(trainer)
    found = trainer.measure(trainer.rows_to_measure(16))
    slow = in_float64(tiny_model())
    expected = score_pairs(slow, [ROWS[place * 22 // 16] for place in range(16)]).metrics()
    expected.pop("loss")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_same_weights(weights_of(trainer), before, tolerance=0)
    assert all(weight.grad is None for weight in trainer.model.parameters())
    trainer.train()
    plain = make_trainer(tmp_path / "plain", ROWS)
    plain.train()
    assert_same_run(trainer, plain, tolerance=0)


@pytest.mark.parametrize(("settings", "said"), [({}, False), ({"average_log_prob": False, "beta": 0.1}, True)])
def test_sums_in_the_lines_are_told(tmp_path, caplog, settings, said):
    with caplog.at_level("INFO", "simpo_trainer"):
        make_trainer(tmp_path, ROWS[:8], max_steps=1, **settings).train()
    assert ("sums over the tokens of an answer, in nats, not averages per token." in caplog.text) == said


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_of_the_model(tmp_path, training):
    trainer = make_trainer(tmp_path, ROWS)
    trainer.model.train(training)
    trainer.measure(trainer.rows_to_measure(8))
    assert trainer.model.training == training


def test_the_start_of_training_states_size_and_margins(tmp_path, caplog):
    with caplog.at_level("INFO", "simpo_trainer"):
        make_trainer(
            tmp_path, ROWS, per_device_train_batch_size=2, gradient_accumulation_steps=4, gamma_beta_ratio=0.3
        ).train()
    start = score_pairs(in_float64(tiny_model()), ROWS).metrics()
    assert "Global batch: 8 pairs (2 per device x 1 process x 4 accumulation). Optimiser steps: 3." in caplog.text
    assert "Target margin: 0.3 nats per token (beta 2, gamma 0.6)." in caplog.text
    assert f"Starting margin: {start['logps/margins']:+.3f} (chosen {start['logps/chosen']:.3f}" in caplog.text


@pytest.mark.parametrize(("accumulation", "said"), [(2, False), (1, True)])
def test_another_batch_than_the_recipes_is_said(tmp_path, caplog, accumulation, said):
    make_trainer(tmp_path, ROWS, global_batch_size=16, gradient_accumulation_steps=accumulation, max_steps=1).train()
    assert ("The global batch is 8 pairs, the recipe's is 16: its other numbers were chosen" in caplog.text) == said


@pytest.mark.slow
def test_without_the_start_message_the_metrics_are_the_same(tmp_path):
    """A reporter only reports: the window of the metrics and the starting measurement do not hang on it."""
    logs, manifests = [], []
    for name in ("plain", "without"):
        trainer = make_trainer(tmp_path / name, random_pairs(12), max_steps=3, logging_steps=2)
        if name == "without":
            trainer.remove_callback(StartReport)
            # What an aborted run left in the open window is not this run's.
            trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader())))
        trainer.train()
        logs.append(train_log(trainer, "loss", "rewards/margins", "logps/chosen", "lengths/chosen"))
        manifests.append(json.loads((tmp_path / name / "run_manifest.json").read_text())["start"])
    assert logs[0] == logs[1]
    assert manifests[0] == manifests[1] is not None
