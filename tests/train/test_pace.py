"""The rates, the memory and the times behind a line of a log file."""

import re
from types import SimpleNamespace

import pytest

from simpo_trainer.train import pace
from simpo_trainer.train.pace import Pace

ARGS = SimpleNamespace(train_batch_size=4, gradient_accumulation_steps=2, world_size=2, device="cpu")


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(pace, "own_peak", lambda device: 2_345_000_000)
    return clock


def _state(step=0, tokens=0):
    return SimpleNamespace(global_step=step, num_input_tokens_seen=tokens)


def test_rates_are_those_since_the_last_line(clock):
    measured = Pace(ARGS, _state())
    clock.now += 10
    assert measured.of({"num_pairs_seen": 160, "num_tokens_seen": 30_000}, 10, 1000) == (
        "pairs/s 16  tokens/s 3000  memory 2.35GB  time 0:00:10  left 0:16:30"
    )
    clock.now += 20
    assert measured.of({"num_pairs_seen": 320, "num_tokens_seen": 90_000}, 20, 1000) == (
        "pairs/s 8  tokens/s 3000  memory 2.35GB  time 0:00:30  left 0:24:30"
    )


def test_an_evaluation_is_in_the_time_left_but_in_no_rate(clock):
    measured = Pace(ARGS, _state())
    clock.now += 100
    measured.leave_out({"eval_a_runtime": 60.0, "eval_a_loss": 0.5})
    measured.leave_out({"eval_b_runtime": 30.0})
    assert measured.of({"num_pairs_seen": 160}, 10, 20).startswith("pairs/s 16  ")
    clock.now += 3600
    assert measured.of({"num_pairs_seen": 320}, 20, 20).endswith("time 1:01:40  left 0:00:00")


def test_rows_are_counted_by_steps_where_no_pairs_are(clock):
    measured = Pace(ARGS, _state())
    clock.now += 8
    assert measured.of({"num_tokens": 80}, 4, 8).startswith("rows/s 8  tokens/s 10  ")


def test_a_resumed_training_counts_from_its_own_start(clock):
    measured = Pace(ARGS, _state(step=100, tokens=5000))
    clock.now += 16
    line = measured.of({"num_pairs_seen": 1616, "num_tokens_seen": 6600}, 101, 103)
    assert re.sub("  memory.*time", "  time", line) == "rows/s 1  tokens/s 100  time 0:00:16  left 0:00:32"
    clock.now += 8
    assert measured.of({"num_pairs_seen": 1632, "num_tokens_seen": 8200}, 102, 103).startswith("pairs/s 2  ")
