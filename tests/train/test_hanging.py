"""Which process hangs, from the reports of all: without processes, by a clock of the test."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from transformers import TrainerControl

from models import random_pairs
from runs import make_trainer
from simpo_trainer.train import hanging
from simpo_trainer.train.hanging import Hanging, Report, Watch

LIMIT = 60.0
BEHIND = "Rank {} has not reported for 60 s (the others wait for it at step 13)."


def reports(beat: int, *positions, busy=(), silent=()) -> list[Report]:
    """At one moment: positions of the ranks, all of which report but the silent ones."""
    return [Report(0 if rank in silent else beat, *position, rank in busy) for rank, position in enumerate(positions)]


def said_by(rank: int, seen, seconds: int = 90, start: int = 0, watch: Watch | None = None) -> list[tuple[int, str]]:
    """What a rank says while it sees the same positions, with the second."""
    watch = watch or Watch(rank, LIMIT)
    return [(now, line) for now in range(start, start + seconds, 5) for line in watch.look(seen(now), float(now))]


def test_a_report_is_read_as_it_was_written():
    report = Report(7, 12, 3, True)
    assert Report.read(report.as_text()) == Report.read(report.as_text().encode()) == report


@pytest.mark.parametrize(("slow", "speaker"), [(1, 0), (0, 1), (2, 0)])
def test_one_that_is_behind_is_named_once_by_the_lowest_that_is_not(slow, speaker):
    positions = [(12, 0) if rank == slow else (12, 2) for rank in range(3)]
    for rank in range(3):
        said = said_by(rank, lambda now: reports(now, *positions), 300)
        assert said == ([(60, BEHIND.format(slow))] if rank == speaker else [])


def test_one_that_gives_no_sign_of_life_is_named_where_all_are_equally_far():
    assert said_by(0, lambda now: reports(now, (12, 2), (12, 2), silent=[1])) == [(60, BEHIND.format(1))]


def test_one_that_goes_on_is_told_and_may_hang_again():
    watch = Watch(0, LIMIT)
    stands = lambda now: reports(now, (12, 2), (12, 0))  # noqa: E731
    assert len(said_by(0, stands, watch=watch)) == 1
    assert said_by(0, lambda now: reports(now, (13, 0), (13, 0)), 60, 90, watch) == [(90, "Rank 1 reports again.")]
    assert said_by(0, stands, 90, 150, watch) == [(210, BEHIND.format(1))]


def test_nobody_is_named_who_is_busy_or_whom_nobody_waits_for():
    for busy in ([1], [0, 1]):
        # Evaluation or saving: no sign of life from where a library lets no thread run.
        assert not said_by(0, lambda now, busy=busy: reports(now, (12, 2), (12, 0), busy=busy, silent=busy), 600)
    assert not said_by(0, lambda now: reports(now, (12, 2), (12, 2)), 600)  # all wait for a slow step
    assert not said_by(0, lambda now: reports(now, (12, 99), (12, now // 50)), 600)  # slow micro-batches


def test_a_rank_that_was_stopped_itself_names_nobody():
    watch = Watch(0, LIMIT)
    watch.look(reports(1, (12, 2), (12, 2)), 0.0)
    # The others have waited for it: they stand where they stood, and it is the first to go on.
    assert watch.look(reports(1, (12, 3), (12, 2)), 500.0) == []
    assert said_by(0, lambda now: reports(now, (12, 3), (12, 2)), 60, 505, watch) == [(560, BEHIND.format(1))]


def test_busy_from_the_end_of_a_step_to_what_follows():
    """What a process reports of itself, along the calls of a training."""
    one, state = Hanging(0, 2), SimpleNamespace(global_step=0)
    args = SimpleNamespace(save_strategy="steps")

    def after(event, **asked):
        getattr(one, event)(args, state, TrainerControl(**asked))
        return one._position, one._busy

    assert one._busy  # from the start to the first epoch
    assert after("on_epoch_begin") == ((0, 0), False)
    assert list(one.counted(iter("ab"))) == ["a", "b"] and one._position == (0, 2)
    assert after("on_step_begin") == ((0, 3), False)
    assert after("on_substep_end") == ((0, 4), False)
    assert after("on_pre_optimizer_step") == ((0, 5), False)
    state.global_step = 1
    assert after("on_step_end") == ((1, 0), False)
    assert after("on_step_end", should_evaluate=True, should_save=True) == ((1, 0), True)
    assert after("on_evaluate", should_save=True) == ((1, 0), True)
    assert after("on_save") == ((1, 0), False)
    args.save_strategy = "best"
    one._busy = True
    assert after("on_evaluate")[1]
    next(one.counted(iter("a")))
    assert not one._busy
    assert after("on_step_end", should_training_stop=True)[1] and after("on_save", should_training_stop=True)[1]
    assert after("on_epoch_end")[1]


def test_a_training_marks_every_step(tmp_path, monkeypatch):
    """Also between the batches and the first collective call: there the others wait for one without data."""
    seen = []
    monkeypatch.setattr(Hanging, "_mark", lambda self: seen.append("mark"))
    trainer = make_trainer(
        tmp_path, random_pairs(8), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    real = trainer.accelerator.reduce
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda *args, **kw: seen.append("wait") or real(*args, **kw))
    trainer.train()
    assert [event for event in seen if event == "mark"] == ["mark"] * 10
    behind_the_start = seen[seen.index("mark") :]
    assert behind_the_start[:6] == ["mark", "mark", "wait", "mark", "mark", "mark"]


def test_one_process_has_no_watch(monkeypatch):
    monkeypatch.setattr(hanging, "store_address", lambda: ("localhost", 1))
    with Hanging(0, 1) as one:
        assert one._thread is None


class Broken:
    """A store whose connection has just ended."""

    def set(self, name, text):
        raise dist.DistNetworkError("gone")


def test_a_store_that_fails_does_no_harm_and_is_asked_again(monkeypatch, caplog):
    answers = dist.HashStore()
    tried = []

    def connect(seconds):
        tried.append(seconds)
        if len(tried) < 3:
            raise ConnectionError("gone")
        return Broken() if len(tried) == 3 else answers

    monkeypatch.setattr(hanging, "LIMIT", 0.6)
    monkeypatch.setattr(hanging, "connect", connect)
    monkeypatch.setattr(hanging, "store_address", lambda: ("localhost", 1))
    monkeypatch.setattr(hanging, "hosted_by_rank_0", lambda: False)
    monkeypatch.setattr(hanging, "_TRAININGS", iter([5]))
    answers.set("hanging/5/1", Report(0, 0, 0, False).as_text())  # of one that never says more
    said = []
    monkeypatch.setattr(hanging, "_say", said.append)
    with caplog.at_level(logging.INFO), Hanging(0, 2) as one:
        one._set_busy(False)
        thread, end = one._thread, time.monotonic() + 30
        while not said and time.monotonic() < end:
            time.sleep(0.05)
    assert said == ["Rank 1 has not reported for 1 s (the others wait for it at step 1)."]
    assert len(tried) == 4 and not thread.is_alive()
    assert Report.read(answers.get("hanging/5/0")).busy  # its last word
