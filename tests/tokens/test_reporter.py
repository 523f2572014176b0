"""Sets and streams are reported on alike: the same counts, the same warnings, the same refusals."""

from itertools import islice

import pytest
from datasets import Dataset

from logs import warnings
from simpo_trainer.batches.stream import StreamedPairs
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens import reporter as reporting
from simpo_trainer.tokens.reporter import RowReporter, StreamReporter
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import CHATML, assistant, toy_pairs, toy_tokenizer, user

KEPT = {
    "reason": None,
    "detail": None,
    "cut": [False, False, False],
    "lost": 0,
    "length": 5,
    "whole_length": 5,
    "pairs": 1,
}
SECOND = {**KEPT, "second": "prompt 'a', with an answer 'b'"}
WITHOUT_TOOLS = {**KEPT, "ignored": "the tools"}
WITHOUT_CALLS = {**KEPT, "ignored": "the tool calls of the prompt"}
ONE_SIDED = {**KEPT, "cut": [False, True, False]}
DROPPED = {**KEPT, "reason": "empty_answer"}
OVERLONG = {**KEPT, "reason": "overlong", "detail": "12 tokens"}


def both(**limits):
    limits = {"max_length": 9, **limits}
    return RowReporter("train", **limits), StreamReporter("train", warned=set(), **limits)


@pytest.mark.parametrize(
    ("notes", "kinds"),
    [
        ([KEPT, SECOND, SECOND], ["does not write prompt + answer"]),
        ([KEPT, WITHOUT_TOOLS, WITHOUT_CALLS, WITHOUT_TOOLS], ["the tools of", "the tool calls of"]),
        ([ONE_SIDED, ONE_SIDED], ["lost its end token"]),
        ([KEPT, DROPPED], []),
    ],
)
def test_one_warning_of_each_kind(notes, kinds, caplog):
    of_set, of_stream = both()
    for reporter in (of_set, of_stream):
        caplog.clear()
        kept = [reporter.count(row, note) for row, note in enumerate(notes)]
        assert kept == [note["reason"] is None for note in notes]
        reporter.end()
        assert [kind in text for kind, text in zip(kinds, warnings(caplog), strict=True)] == [True] * len(kinds)
    assert of_set.report == of_stream.report


def test_a_stream_warns_at_the_first_row(caplog):
    _, of_stream = both()
    for row, note in enumerate([KEPT, SECOND]):
        of_stream.count(row, note)
    assert warnings(caplog) == [
        "train: in 1 of the first 2 pairs the chat template does not write prompt + answer behind the prompt of "
        "inference (first row 1: prompt 'a', with an answer 'b'). There the answer's own text, and the token that ends "
        "it, are trained behind the generation header instead."
    ]


def test_readings_of_a_stream_share_what_was_warned_of(caplog):
    warned = set()
    for _ in range(2):
        reporter = StreamReporter("train", max_length=9, warned=warned)
        reporter.count(0, SECOND)
        reporter.end()
    assert len(warnings(caplog)) == 1


def test_too_long_or_too_few(monkeypatch):
    monkeypatch.setattr(reporting, "_TRIAL", 2)
    of_set, of_stream = both(overlong="error")
    of_set.count(0, OVERLONG)
    for refuse in (of_set.end, lambda: of_stream.count(0, OVERLONG)):
        with pytest.raises(SimPOError, match="1 of 1 pairs exceed max_length=9 .first: row 0, 12 tokens"):
            refuse()
    of_set, of_stream = both()
    of_stream.count(0, DROPPED)
    for row in range(2):
        of_set.count(row, DROPPED)
    for refuse in (of_set.end, lambda: of_stream.count(1, DROPPED)):
        with pytest.raises(SimPOError, match="2 of 2 pairs cannot be trained on"):
            refuse()


def test_a_set_and_the_same_rows_in_a_stream(caplog):
    """Of raw rows with an answer in its second rendering, cut answers and a dropped row, as they are trained on."""
    tokenizer = toy_tokenizer(CHATML.replace("assistant\n{%", "assistant:\n{%"))
    long = {"prompt": [user("Go on.")], "chosen": [assistant("x" * 200)], "rejected": [assistant("No.")]}
    same = {**long, "chosen": long["rejected"]}
    rows = Dataset.from_list([*toy_pairs(2, conversational=True), long, same])
    settings = RowSettings(max_length=64, max_prompt_length=40, overlong="truncate")

    _, report = tokenize_preferences(rows, tokenizer, settings)
    of_set = warnings(caplog)
    caplog.clear()
    stream = StreamedPairs(
        tokenize_stream(rows.to_iterable_dataset(), tokenizer, settings), batch_size=3, max_length=64
    )
    assert len(stream.first_rows(4)) == 3
    assert len(list(islice(stream, 3))) == 3  # three passes
    of_stream = warnings(caplog)
    assert len(of_stream) == len(of_set) == 2
    assert (report.second_renderings.count, report.one_sided_ends, report.rows_kept) == (3, 1, 3)
