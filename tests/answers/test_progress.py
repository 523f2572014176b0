"""The progress of long work in the log."""

import logging

import pytest

from simpo_trainer.answers import progress
from simpo_trainer.answers.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_with_the_time_left(clock, caplog):
    caplog.set_level(logging.INFO, logger="simpo_trainer")
    work = Progress("rows scored", 1100, done=100)
    for clock[0], done in ((105, 200), (112, 300), (121, 400), (122, 500), (5000, 1099)):
        work.update(done)
    assert [record.getMessage() for record in caplog.records] == [
        "rows scored: 300 of 1,100, 0:48 left",
        "rows scored: 500 of 1,100, 0:33 left",
        "rows scored: 1,099 of 1,100, 0:05 left",
    ]


def test_nothing_done_has_no_pace(clock, caplog):
    caplog.set_level(logging.INFO, logger="simpo_trainer")
    work = Progress("answers", 100_000)
    clock[0] += 20
    work.update(0, "waiting")
    clock[0] += 20
    work.update(1)
    assert [record.getMessage() for record in caplog.records] == [
        "answers: 0 of 100,000, waiting",
        "answers: 1 of 100,000, 1111:06:00 left",
    ]
