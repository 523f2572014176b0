"""Trackers get findings and samples; a text of the model is no markup there."""

from types import SimpleNamespace

import pytest
from transformers.integrations import integration_utils

from simpo_trainer.train.trackers import send_finding, send_samples

ROWS = [{"step": 2, "prompt": "a | b", "answer": "<img src=x>\n[x](y)", "tokens": 3, "ended": True, "repeat_rate": 0.0}]


class Calls:
    """Takes any call under any name and notes it."""

    run = object()

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs)) or f"<{name}>"


def trainer_with(name, attribute):
    calls = Calls()
    callback = type(name, (), {})()
    setattr(callback, attribute, calls)
    others = [type("PrinterCallback", (), {})()]
    return SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[*others, callback])), calls.calls


def test_tensorboard_gets_texts_that_are_no_markup():
    trainer, calls = trainer_with("TensorBoardCallback", "tb_writer")
    send_finding(trainer, "Step 2: [x](y)", 2)
    send_samples(trainer, ROWS, 2)
    assert [(name, args[0], args[2]) for name, args, _ in calls] == [
        ("add_text", "health/finding", 2),
        ("add_text", "samples", 2),
    ]
    header, _, row = calls[1][1][1].splitlines()
    assert header.count("|") == row.count("|") == 7 and "<img" not in row and "[x]" not in row
    assert "[x]" not in calls[0][1][1]


@pytest.mark.parametrize(("name", "attribute"), [("WandbCallback", "_wandb"), ("TrackioCallback", "_trackio")])
def test_other_trackers_get_a_table(name, attribute):
    trainer, calls = trainer_with(name, attribute)
    send_finding(trainer, "Step 2: bad", 2)
    send_samples(trainer, ROWS, 2)
    assert [name for name, _, _ in calls][-2:] == ["Table", "log"]
    assert calls[-1][1][0] == {"samples": "<Table>", "train/global_step": 2}
    assert "Step 2: bad" in str(calls[0])


def test_a_tracker_that_is_not_set_up_gets_nothing():
    for name, attribute in (("TensorBoardCallback", "tb_writer"), ("WandbCallback", "_wandb")):
        trainer, _ = trainer_with(name, attribute)
        setattr(trainer.callback_handler.callbacks[-1], attribute, None)
        send_finding(trainer, "x", 1)
        send_samples(trainer, ROWS, 1)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("TensorBoardCallback", "tb_writer"), ("WandbCallback", "_wandb"), ("TrackioCallback", "_trackio")],
)
def test_transformers_still_has_these_names(name, attribute):
    import inspect

    assert f"self.{attribute}" in inspect.getsource(getattr(integration_utils, name))
