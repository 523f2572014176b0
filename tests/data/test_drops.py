"""The report on rows left out: counts, words, and when it refuses to go on."""

import dataclasses
import json
import pickle

import pytest

from simpo_trainer.data.drops import REASONS, Dropped, DropReport, RowDropped
from simpo_trainer.errors import SimPOError


def report(kept, dropped):
    reasons = {reason: Dropped(count, 7, "seen") for reason, count in dropped.items()}
    return DropReport("train", kept + sum(dropped.values()), kept, reasons)


def test_half_of_the_rows_may_be_left_out_but_not_more():
    report(2, {"empty_answer": 2}).check_enough_kept()
    with pytest.raises(SimPOError) as caught:
        report(2, {"empty_answer": 2, "no_prompt": 1}).check_enough_kept()
    assert "train: 3 of 5 pairs cannot be trained on" in str(caught.value)
    for reason in ("empty_answer", "no_prompt"):
        assert f"({reason}, first row 7): {REASONS[reason][0]} (seen). {REASONS[reason][1]}" in str(caught.value)


def test_report_as_text_and_as_values():
    summary = report(8, {"identical_answers": 2}).summary()
    assert "train: 8 of 10 pairs" in summary
    assert "dropped 2 (identical_answers, first row 7): both answers are the same" in summary
    values = dataclasses.asdict(report(8, {"identical_answers": 2}))
    assert json.loads(json.dumps(values))["dropped"] == {
        "identical_answers": {"count": 2, "first_row": 7, "detail": "seen"}
    }


def test_reasons_are_sentences_a_user_can_act_on():
    for wrong, change in REASONS.values():
        assert wrong and change.endswith(".")


def test_row_dropped_survives_pickling():
    again = pickle.loads(pickle.dumps(RowDropped("no_prompt", "detail")))
    assert (again.reason, again.detail) == ("no_prompt", "detail")
