"""The facts of a round: changes prompt by prompt, their interval, repetition, and which round is the best."""

import io
import random
from statistics import fmean, stdev

import pytest
from rich.console import Console

from answering import write_lines
from simpo_trainer.rounds.facts import interval, read_round, repeated_share, standing
from simpo_trainer.rounds.files import RoundFiles
from simpo_trainer.rounds.picture import rounds_picture
from simpo_trainer.rounds.report import show


@pytest.mark.parametrize(
    ("answer", "share"),
    [("", 0.0), ("a b c", 0.0), ("a b c d e", 0.0), ("a b c d a b c d", 1 / 5), ("no " * 13, 9 / 10)],
)
def test_runs_of_four_words_that_were_there_before_count(answer, share):
    assert repeated_share(answer) == pytest.approx(share)


def test_the_interval_is_that_of_a_mean():
    rng = random.Random(3)
    changes = [rng.gauss(0.4, 1) for _ in range(400)]
    low, high = interval(changes)
    half = 1.96 * stdev(changes) / 20
    assert (low, high) == pytest.approx((fmean(changes) - half, fmean(changes) + half), abs=0.02)
    assert interval(changes) == (low, high)


@pytest.fixture
def folder(tmp_path):
    for number, scores in enumerate([(1, 2, None, 4), (2, 1, 3, None), (0, 9, 3, 4)]):
        rows = [
            {
                "key": f"{number}-{i}",  # the key of a row depends on the model too
                "prompt": [{"role": "user", "content": str(i)}],
                "answers": ["a"],
                "scores": [score],
                "token_counts": [number + i],
                "finish_reasons": ["length" if i == number else "stop"],
            }
            for i, score in enumerate(scores)
        ]
        files = RoundFiles(tmp_path, number)
        files.folder.mkdir()
        write_lines(files.held_out, rows if number < 2 else rows[::-1])
    return tmp_path


def test_changes_are_those_of_prompts_that_were_scored_both_times(folder):
    start, first, second = (read_round(folder, number, "org/model") for number in range(3))
    assert (start.held_out_score, start.not_scored, start.change, start.model) == (
        fmean([1, 2, 4]),
        1,
        None,
        "org/model",
    )
    assert (first.held_out_score, first.change, first.rose, first.fell) == (2.0, 0.0, 0.5, 0.5)
    assert second.change == fmean([-1, 7, 0]) and second.rose == second.fell == pytest.approx(1 / 3)
    assert second.change_low < second.change < second.change_high
    assert (second.answer_tokens, second.cut_off, second.model) == (3.5, 0.25, "round-2/model")
    assert second.pair_accuracy is None and second.rows_trained_on is None


def test_the_rounds_are_shown(folder):
    rounds = [read_round(folder, number, "org/model") for number in range(3)]
    best = standing(rounds).best
    assert best is rounds[2]
    console = Console(file=io.StringIO(), width=20)
    show(rounds, best, console)
    shown = console.file.getvalue()
    assert "round 2 (best)" in shown and "-1 to" in shown.replace("-1.00", "-1") and "33.3% / 33.3%" in shown
    assert "pair accuracy" not in shown  # nothing has measured it
    rounds_picture(rounds, best, folder / "rounds.png")
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG") and not list(folder.glob(".*.new"))
