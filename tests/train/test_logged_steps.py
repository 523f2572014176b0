"""A short run shows its course: the first step, the last, and at least ten lines where it has as many steps."""

from types import SimpleNamespace

import pytest

from logs import warnings
from models import random_pairs
from runs import assert_same_weights, make_trainer, weights_of
from simpo_trainer.train.logged_steps import LoggedSteps
from simpo_trainer.train.start import too_few_steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        ({"max_steps": 3}, [1, 2, 3]),
        ({"max_steps": 1}, [1]),
        ({"max_steps": 25}, [1, *range(2, 25, 2), 25]),
        ({"max_steps": 100}, [1, *range(10, 101, 10)]),
        ({"max_steps": 105, "logging_steps": 50}, [1, *range(10, 101, 10), 105]),
        ({"max_steps": 30, "logging_steps": 2}, [1, *range(2, 31, 2)]),
        ({"max_steps": 4, "logging_strategy": "epoch", "num_train_epochs": 2}, [1, 2, 4]),
        ({"max_steps": 3, "logging_strategy": "no"}, []),
    ],
)
def test_steps_that_are_logged(tmp_path, settings, logged):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 10, **settings}
    trainer = make_trainer(tmp_path, random_pairs(4), **settings)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "rewards/margins" in entry] == logged
    assert "train_loss" in trainer.state.log_history[-1]


@pytest.mark.slow
def test_more_lines_change_no_weight(tmp_path):
    often, seldom = (make_trainer(tmp_path / name, random_pairs(8), max_steps=4) for name in ("often", "seldom"))
    seldom.remove_callback(LoggedSteps)
    seldom.args.logging_steps = 100
    for trainer in (often, seldom):
        trainer.train()
    assert_same_weights(weights_of(often), weights_of(seldom), tolerance=0)


@pytest.mark.parametrize(
    ("rate", "steps", "needed"),
    [
        (5e-7, 3, 40),
        (5e-7, 39, 40),
        (1e-6, 5, 20),
        (5e-7, 40, None),
        (3e-7, 478, None),
        (0.0, 3, None),
        (1e-3, 1, None),
    ],
)
def test_too_few_steps_for_the_learning_rate(rate, steps, needed):
    warning = too_few_steps(SimpleNamespace(learning_rate=rate, optim="adamw_torch"), steps)
    assert (warning is None) == (needed is None)
    assert needed is None or f"{steps} optimiser steps" in warning and f"at least {needed}: lower global" in warning
    assert too_few_steps(SimpleNamespace(learning_rate=rate, optim="sgd"), steps) is None


def test_an_adapter_needs_ten_times_as_much():
    args = SimpleNamespace(learning_rate=5e-6, optim="adamw_torch")
    assert too_few_steps(args, 4) is None
    assert too_few_steps(args, 40, adapts=True) is None
    assert "at least 40" in too_few_steps(args, 39, adapts=True)


def test_the_warning_stands_at_the_start(tmp_path, caplog):
    make_trainer(tmp_path, random_pairs(4), max_steps=2, learning_rate=5e-7, optim="adamw_torch").train()
    assert any("hardly move the model" in warning for warning in warnings(caplog))
