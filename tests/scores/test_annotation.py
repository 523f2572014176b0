"""From a file of answers to scores and rows to train on: complete, resumable, and never over another file."""

import errno
import json
import os
from pathlib import Path

import pytest

from answer_files import answer_row, write_answers
from logs import warnings
from simpo_trainer.answers.card import card_path, read_card
from simpo_trainer.answers.journal import only_writer
from simpo_trainer.answers.row_files import read_rows, write_rows
from simpo_trainer.data.load import load_preferences
from simpo_trainer.data.settings import DataConfig
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import AnnotateSettings
from simpo_trainer.scores import annotation
from simpo_trainer.scores.annotation import annotate
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import assistant, toy_tokenizer


class LengthScorer:
    """Gives each answer its length, one row a group; fails at a call where asked, and counts what it scores."""

    def __init__(self, fails_at=None, name="length"):
        self.identity = {"scorer": name}
        self.fails_at, self.scored = fails_at, []

    def scores(self, rows):
        for row in rows:
            if len(self.scored) == self.fails_at:
                raise RuntimeError("stopped")
            self.scored.append(row["key"])
            yield [(row, [float(len(answer)) for answer in row["answers"]])]


@pytest.fixture
def scorer(monkeypatch):
    """Puts a scorer in the place of that of the settings."""

    def use(*args, **kwargs):
        scorer = LengthScorer(*args, **kwargs)
        monkeypatch.setattr(annotation, "load_scorer", lambda settings: scorer)
        return scorer

    return use


SETTINGS = AnnotateSettings(score="a.b")


def settings(**given):
    return AnnotateSettings(score="a.b", **given)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def only(folder, pattern):
    [path] = folder.glob(pattern)
    return path


# --- What is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_scores_and_pairs_are_written_with_their_cards(tmp_path, scorer, ending, caplog):
    scorer()
    file = write_answers(tmp_path / f"answers{ending}")
    output = annotate(file, SETTINGS)
    scored = only(tmp_path, f"answers.scores-????????{ending}")
    assert output == only(tmp_path, f"answers.pairs-????????{ending}")
    assert len(list(tmp_path.iterdir())) == 6  # three files with their cards
    answers = read_rows(file)
    lengths = [[float(len(answer)) for answer in row["answers"]] for row in answers]
    assert read_rows(scored) == [{**row, "scores": own} for row, own in zip(answers, lengths, strict=True)]
    pairs = read_rows(output)
    assert [pair["key"] for pair in pairs] == sorted(pair["key"] for pair in pairs)
    by_key = {row["key"]: row for row in answers}
    for pair in pairs:
        row = by_key[pair["key"]]
        assert pair["chosen"] == [assistant(max(row["answers"], key=len))]
        assert pair["rejected"] == [assistant(min(row["answers"], key=len))]
        assert pair["kind"] == row["kind"]
    card = read_card(output)
    assert list(card) == ["generated", "annotated", "selected"]
    assert card["generated"] == {"model": "toy", "prompts": 8}
    assert card["annotated"]["rows"] == 8
    assert card["annotated"]["answers_scored"] == 32
    assert card["annotated"]["scores"]["lowest"] == min(map(min, lengths))
    assert card["annotated"]["scores"]["highest"] == max(map(max, lengths))
    left_out = card["selected"]["prompts_left_out"]
    assert card["selected"]["rows"] == len(pairs) == 8 - sum(left_out.values())
    assert left_out == {"all answers tie": 2}  # those of 0 and 7
    assert f"simpo train RECIPE --dataset_name {output}" in caplog.text


@pytest.mark.parametrize("rule", ["best_worst", "all", "adjacent", "ranked"])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_trainer_takes_every_row(tmp_path, scorer, rule, ending):
    scorer()
    rows = [
        answer_row(
            number,
            tools=json.dumps([{"type": "function", "function": {"name": "add"}}]),
            chat_template_kwargs={"enable_thinking": False},
            margin=-1.0,
            messages=[],
            question="What?",
        )
        for number in range(1, 7)
    ]
    output = annotate(write_answers(tmp_path / f"a{ending}", rows), settings(pairs=rule))
    train, _ = load_preferences(DataConfig(dataset_name=str(output)))
    written = read_rows(output)
    assert len(train) == len(written)
    tokenized, _ = tokenize_preferences(train, toy_tokenizer(), RowSettings(max_length=4096))
    assert len(tokenized) == len(written)
    assert "tools" in train.column_names and "chat_template_kwargs" in train.column_names


def test_a_function_scores(tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def score(prompt, answer, row):\n    return len(answer) if row['kind'] == 'kind 1' else 1 / 0\n")
    output = annotate(write_answers(tmp_path / "a.jsonl"), AnnotateSettings(score=f"{rules}:score"))
    assert {row["kind"] for row in read_rows(output)} == {"kind 1"}
    card = read_card(output)
    assert card["annotated"]["name"] == "local file 'rules.py':score"
    assert (card["annotated"]["answers_scored"], card["annotated"]["answers_not_scored"]) == (16, 16)
    assert card["selected"]["prompts_left_out"] == {"all answers tie": 1, "fewer than two scored answers": 4}


# --- Going on, and again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(0, 8, 3))
def test_a_call_that_was_stopped_goes_on(tmp_path, scorer, stop):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_answers(tmp_path / name / "a.jsonl")
    scorer()
    annotate(tmp_path / "whole" / "a.jsonl", SETTINGS)
    first = scorer(fails_at=stop)
    with pytest.raises(RuntimeError):
        annotate(tmp_path / "stopped" / "a.jsonl", SETTINGS)
    second = scorer()
    annotate(tmp_path / "stopped" / "a.jsonl", SETTINGS)
    assert len(first.scored) == stop
    assert sorted(first.scored + second.scored) == sorted(set(first.scored + second.scored))
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_the_same_command_changes_nothing(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    annotate(file, SETTINGS)
    before = contents(tmp_path)
    again = scorer()
    annotate(file, SETTINGS)
    assert contents(tmp_path) == before
    assert again.scored == []


def test_other_rows_are_made_of_the_same_scores(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    first = annotate(file, SETTINGS)
    again = scorer()
    second = annotate(file, settings(pairs="ranked", least_gap=3.0))
    assert again.scored == []
    assert first != second
    assert all(row["scores"][0] - row["scores"][-1] >= 3 for row in read_rows(second))
    assert len(list(tmp_path.glob("a.scores-*.jsonl"))) == 1


def test_without_pairs_the_output_has_the_scores(tmp_path, scorer):
    """Also where no pair could be made of them."""
    file = write_answers(tmp_path / "a.jsonl")
    scorer()
    output = annotate(file, settings(pairs="none", output=str(tmp_path / "scored.jsonl")))
    rows = read_rows(output)
    assert [row["scores"] for row in rows] == [[float(len(answer)) for answer in row["answers"]] for row in rows]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in read_rows(file)]
    before = contents(tmp_path)
    again = scorer()
    annotate(file, settings(pairs="none", output=str(output)))
    assert contents(tmp_path) == before and again.scored == []
    scorer(name="other")
    with pytest.raises(SimPOError, match="other settings or of other answers .see scored.card.md.; it is not over"):
        annotate(file, settings(pairs="none", output=str(output)))
    scorer()
    assert annotate(file, settings(pairs="none")) == only(tmp_path, "a.scores-*.jsonl")


def test_another_scorer_scores_anew(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    annotate(file, SETTINGS)
    again = scorer(name="other")
    annotate(file, SETTINGS)
    assert len(again.scored) == 8
    assert len(list(tmp_path.glob("a.scores-*.jsonl"))) == 2


def test_a_kill_after_the_scores_leaves_nothing_to_score(tmp_path, scorer, monkeypatch):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(annotation, "select", None)
        with pytest.raises(TypeError):
            annotate(file, SETTINGS)
    again = scorer()
    annotate(file, SETTINGS)
    assert again.scored == []


# --- Other files ------------------------------------------------------------------------------------------------------


def test_an_output_of_other_settings_is_not_overwritten(tmp_path, scorer):
    file = write_answers(tmp_path / "a.jsonl")
    output = str(tmp_path / "pairs.jsonl")
    scorer()
    annotate(file, settings(output=output))
    before = contents(tmp_path)
    again = scorer(name="other")
    for other in (settings(output=output, pairs="all"), settings(output=output)):
        with pytest.raises(SimPOError, match="other settings or of other answers .see pairs.card.md.; it is not over"):
            annotate(file, other)
    assert contents(tmp_path) == before
    assert again.scored == []


def test_an_output_without_a_card_is_not_overwritten(tmp_path, scorer):
    scorer()
    (tmp_path / "pairs.jsonl").write_text("mine\n")
    with pytest.raises(SimPOError, match="is no file of `simpo annotate` .there is no pairs.card.md."):
        annotate(write_answers(tmp_path / "a.jsonl"), settings(output=str(tmp_path / "pairs.jsonl")))
    assert (tmp_path / "pairs.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "other.parquet"])
def test_an_output_takes_no_place_of_another_file_or_card(tmp_path, scorer, name):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    write_answers(tmp_path / "other.jsonl")
    before = contents(tmp_path)
    with pytest.raises(SimPOError, match="would take the place of"):
        annotate(file, settings(output=str(tmp_path / name)))
    assert contents(tmp_path) == before


def test_two_calls_do_not_write_one_file(tmp_path, scorer):
    used = scorer()
    file = write_answers(tmp_path / "a.jsonl")
    output = tmp_path / "pairs.jsonl"
    with only_writer(output), pytest.raises(SimPOError, match="Another process is writing"):
        annotate(file, settings(output=str(output)))
    assert used.scored == []


def test_scores_that_were_changed_are_refused(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    annotate(file, SETTINGS)
    scored = only(tmp_path, "a.scores-*.jsonl")
    write_rows(scored, read_rows(scored)[1:])
    with pytest.raises(SimPOError, match="was changed after"):
        annotate(file, settings(pairs="all"))


# --- Before the work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "No scorer is given; give exactly one of score .*, reward_model .*, ranker .*, server "),
        ({"score": "a.b", "ranker": "c"}, "score and ranker are given; give exactly one"),
        ({"score": "a.b", "output": "pairs.csv"}, "output is 'pairs.csv'; it must end in .jsonl or .parquet"),
    ],
)
def test_settings_that_cannot_be(tmp_path, given, message):
    with pytest.raises(SimPOError, match=message):
        annotate(write_answers(tmp_path / "a.jsonl"), AnnotateSettings(**given))


GOOD = answer_row(1)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"prompt": "p", "chosen": "c", "rejected": "r"}], "It holds preference pairs already"),
        ([{"prompt": "p", "responses": [], "scores": []}], "It holds ranked answers already"),
        ([{"prompt": "p"}], "column 'key' and 'answers' missing; the columns are 'prompt'"),
        ([{**GOOD, "answers": "text"}], "row 1: its answers must be a list of texts"),
        ([GOOD, {**answer_row(2), "answers": [None]}], "row 2: its answers must be"),
        ([{**GOOD, "prompt": "text"}], "row 1: its prompt must be a list of messages"),
        ([{**GOOD, "key": 3}], "row 1: its key is 3"),
        ([GOOD, answer_row(2), GOOD], "rows 1 and 3 have the same key"),
        ([], "has no rows"),
    ],
)
def test_files_that_are_not_of_answers(tmp_path, scorer, rows, message):
    scorer()
    file = tmp_path / "a.jsonl"
    write_rows(file, rows)
    with pytest.raises(SimPOError, match=message):
        annotate(file, SETTINGS)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_scores_is_not_annotated(tmp_path, scorer):
    scorer()
    annotate(write_answers(tmp_path / "a.jsonl"), SETTINGS)
    with pytest.raises(SimPOError, match="was written by `simpo annotate`. Name the file of answers"):
        annotate(only(tmp_path, "a.scores-*.jsonl"), SETTINGS)


def test_what_parquet_cannot_hold_is_told_before_the_work(tmp_path, scorer):
    used = scorer()
    file = write_answers(tmp_path / "a.jsonl", [answer_row(1, source="x"), answer_row(2, source=3)])
    with pytest.raises(SimPOError, match="Parquet cannot hold a column"):
        annotate(file, settings(output=str(tmp_path / "p.parquet")))
    assert used.scored == []


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_nothing_to_train_on_is_an_error(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    with pytest.raises(SimPOError, match=r"No row .* of 8 prompts \(all answers tie: 2; scores too close: 6\)"):
        annotate(file, settings(least_gap=1000.0))


def test_a_scorer_that_scores_nothing_is_stopped(tmp_path, scorer):
    used = scorer()
    used.scores = lambda rows: ([(row, [None] * 4)] for row in rows)
    with pytest.raises(SimPOError, match="Not one answer of the first 20 rows"):
        annotate(write_answers(tmp_path / "many.jsonl", count=30), SETTINGS)
    with pytest.raises(SimPOError, match="Not one answer of the first 8 rows"):
        annotate(write_answers(tmp_path / "few.jsonl"), SETTINGS)
    working = scorer()
    annotate(tmp_path / "few.jsonl", SETTINGS)
    assert len(working.scored) == 8  # nothing of it was kept


def test_scores_that_are_not_finite_count_as_none(tmp_path, scorer, caplog):
    used = scorer()
    used.scores = lambda rows: ([(row, [1.0, float("nan"), 2.0, float("inf")])] for row in rows)
    output = annotate(write_answers(tmp_path / "a.jsonl"), SETTINGS)
    assert read_card(output)["annotated"]["answers_not_scored"] == 16
    assert "16 answers got a score that is no finite number" in warnings(caplog)[0]


@pytest.mark.parametrize("call", range(9))
def test_on_a_full_disk_the_command_can_be_repeated(tmp_path, scorer, monkeypatch, call):
    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
        write_answers(tmp_path / name / "a.jsonl", count=4)
    scorer()
    annotate(tmp_path / "whole" / "a.jsonl", SETTINGS)
    calls = iter(range(1000))

    def full(real):
        def limited(*args, **kwargs):
            if next(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return limited

    file = tmp_path / "full" / "a.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full(os.fsync))
        patch.setattr(Path, "write_text", full(Path.write_text))
        with pytest.raises(SimPOError, match="the disk is full. What was finished before is kept"):
            annotate(file, SETTINGS)
    assert not list(file.parent.glob(".*.new"))
    annotate(file, SETTINGS)
    assert contents(file.parent) == contents(tmp_path / "whole")


# --- Decontamination --------------------------------------------------------------------------------------------------


def test_prompts_of_an_evaluation_set_are_left_out_and_listed(tmp_path, scorer):
    scorer()
    file = write_answers(tmp_path / "a.jsonl")
    exam = tmp_path / "exam.jsonl"
    write_rows(exam, [{"question": "say SOMETHING on: the number 3"}])
    output = annotate(file, settings(decontaminate=[str(exam)], decontaminate_words=6))
    key = answer_row(3)["key"]
    assert key not in {row["key"] for row in read_rows(output)}
    listed = read_rows(output.with_suffix(".left-out.jsonl"))
    assert listed == [
        {
            "key": key,
            "prompt": answer_row(3)["prompt"],
            "set": "local file 'exam.jsonl'",
            "words": "say something on the number 3",
        }
    ]
    card = read_card(output)["selected"]
    assert card["prompts_left_out"]["decontaminated by local file 'exam.jsonl'"] == 1
    assert str(tmp_path) not in card_path(output).read_text()
    # Other rows of the set make another file.
    write_rows(exam, [{"question": "say SOMETHING on: the number 4"}])
    assert annotate(file, settings(decontaminate=[str(exam)], decontaminate_words=6)) != output
