"""Which of several failures is the cause, and the words for it."""

import json

import pytest
import torch.distributed as dist

from simpo_trainer import SimPOError
from simpo_trainer.run import first_cause
from simpo_trainer.run.first_cause import Failure, is_lost_connection, last_line, read_failure, tell_failure

LOST = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4")


def failure(rank: int, text: str, *, expected=False, lost=False, at=0.0, first=None) -> Failure:
    return Failure(rank, text, expected, lost, at, first)


@pytest.fixture
def store(monkeypatch):
    """A store of the group, and a rank for each process to be; nobody waits."""
    found = dist.HashStore()
    monkeypatch.setattr(first_cause, "connect", lambda seconds: found)
    monkeypatch.setattr(first_cause, "_WAIT", 0.2)
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


def test_a_failure_is_read_as_it_was_written():
    for one in (failure(1, "KeyError: 'x'", at=1.5), failure(0, "bad", lost=True, first=(1, "why"))):
        assert read_failure(one.as_text()) == one
    assert read_failure("some text") is None and read_failure(json.dumps({"rank": 1})) is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (LOST, True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 0."), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (RuntimeError("CUDA out of memory"), False),
        (SimPOError("connection closed by peer"), False),
        (KeyError("x"), False),
    ],
)
def test_lost_connections(error, lost):
    assert is_lost_connection(error) is lost


def test_the_process_that_lost_the_others_learns_the_cause(store):
    store(1)
    cause = tell_failure(KeyError("no such thing"))
    assert (cause.text, cause.lost, cause.first) == (
        "KeyError: 'no such thing'",
        False,
        (1, "KeyError: 'no such thing'"),
    )
    store(0)
    lost = tell_failure(LOST)
    assert lost.lost and lost.first == cause.first
    assert last_line([lost, cause]) == last_line([lost]) == "Rank 1 failed first: KeyError: 'no such thing'"
    later = tell_failure(MemoryError())
    assert (later.text, later.first) == ("MemoryError", cause.first)


def test_nobody_knows_the_cause_where_all_lost_their_connection(store):
    store(0)
    lost = tell_failure(LOST)
    assert lost.first is None and last_line([lost]) is None


def test_what_went_before_a_lost_connection_in_the_same_process_is_the_cause(store):
    """As when a process fails where the others wait for it, and then waits for them."""
    store(1)
    try:
        try:
            raise FileNotFoundError("pairs.jsonl")
        finally:
            raise LOST
    except RuntimeError as error:
        assert tell_failure(error).first == (1, "FileNotFoundError: pairs.jsonl")


def test_without_a_store_the_earliest_counts(monkeypatch):
    def gone(seconds):
        raise ConnectionError("gone")

    monkeypatch.setattr(first_cause, "connect", gone)
    monkeypatch.setenv("RANK", "1")
    own = tell_failure(KeyError("x"))
    assert own.first is None
    later = failure(0, "ValueError: y", at=own.time + 1)
    assert last_line([later, own]) == "Rank 1 failed first: KeyError: 'x'"


def test_an_error_to_correct_has_a_rank_only_where_it_is_that_of_one():
    text = "two mistakes:\n  one\n  two"
    alike = [failure(rank, text, expected=True, first=(1, text)) for rank in (0, 1)]
    assert last_line(alike) == text
    assert last_line(alike[:1]) == text  # the other one was ended before it could say so
    assert last_line([failure(0, text, expected=True)]) == text
    one = "Rank 1 failed first: two mistakes: one two"
    assert last_line(alike[1:]) == one
    assert last_line([alike[1], failure(0, "gone", lost=True, first=(1, text))]) == one
    assert last_line([failure(0, text, expected=True), failure(1, "gone", lost=True)]).startswith("Rank 0 failed first")
    assert last_line([failure(0, "KeyError: 1")]) == "Rank 0 failed first: KeyError: 1"
