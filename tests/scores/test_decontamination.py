"""Prompts that share a run of words with an evaluation set."""

import pytest
from datasets import Dataset, DatasetDict

from simpo_trainer.answers.row_files import write_rows
from simpo_trainer.errors import SimPOError
from simpo_trainer.scores.decontamination import Decontamination, Match, words_of
from toy import assistant, user

QUESTION = "Which of the two trains arrives first in the town of Ulm?"


@pytest.fixture
def exam(tmp_path):
    """Writes an evaluation set; returns what finds its prompts."""

    def make(*rows, length=8):
        path = tmp_path / "exam.jsonl"
        write_rows(path, rows)
        return Decontamination([str(path)], length)

    return make


def test_a_shared_run_of_words_is_found(exam):
    found = exam({"question": QUESTION}).match([user("Please: which of the TWO trains, arrives 'first' in it?")])
    assert found == Match("local file 'exam.jsonl'", "which of the two trains arrives first in")


def test_a_run_that_is_a_word_shorter_is_not(exam):
    assert exam({"question": QUESTION}).match([user("So which of the two trains arrives first then? In the")]) is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION},
        {"turns": ["First", QUESTION]},
        {"messages": [user("Hello"), assistant("Hi"), user(QUESTION)]},
        {"nested": {"deep": [{"input": QUESTION}]}},
    ],
)
def test_all_texts_of_a_row_are_read(exam, row):
    assert exam(row).match([user(QUESTION)])


def test_only_what_the_user_says_is_compared(exam):
    found = exam({"question": QUESTION})
    assert found.match([{"role": "system", "content": QUESTION}, user("Hello")]) is None
    assert found.match([user("Hello"), assistant("Hi"), user(QUESTION)])
    assert found.match([user([{"type": "text", "text": QUESTION}])])


def test_a_word_of_the_format_is_no_text(exam):
    found = exam({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]})
    assert found.match([user([{"type": "text", "text": "Hello there"}])]) is None


def test_short_texts_are_compared_whole(exam):
    found = exam({"question": "Who wrote Faust?"}, {"question": QUESTION})
    assert found.match([user("who wrote FAUST")]) == Match("local file 'exam.jsonl'", "who wrote faust")
    assert found.match([user("Who wrote Faust, and when?")]) is None
    assert found.match([user("which of the two")]) is None
    assert found.match([user("?!")]) is None


def test_a_text_of_just_as_many_words_is_a_run(exam):
    assert exam({"question": "a b c"}, length=3).match([user("x a b c y")])
    assert exam({"question": "x a b c y"}, length=3).match([user("a b c")])


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't, it's 3.5!", ["don", "t", "it", "s", "3", "5"]),
        ("ПРИВЕТ, мир_2", ["привет", "мир", "2"]),
        ("Cafe\u0301 ΟΔΟΣ", ["café", "οδος"]),
        ("你好，世界", ["你好", "世界"]),
    ],
)
def test_words_of_any_script(text, words):
    assert words_of(text) == words


def test_all_splits_of_a_folder_are_read(tmp_path):
    splits = {"test": Dataset.from_list([{"q": "w x y z"}]), "dev": Dataset.from_list([{"q": "a b c d"}])}
    DatasetDict(splits).save_to_disk(tmp_path / "exam")
    found = Decontamination([str(tmp_path / "exam")], 3)
    assert found.match([user("b c d")]) and found.match([user("w x y")])


def test_the_set_is_named(tmp_path):
    for name, text in (("one", "a b c"), ("two", "d e f")):
        write_rows(tmp_path / f"{name}.jsonl", [{"q": text}])
    found = Decontamination([str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")], 3)
    assert found.match([user("d e f g")]).set_name == "local file 'two.jsonl'"


def test_the_identity_follows_the_texts_and_the_length(exam):
    first = exam({"q": "a b c"}).identity
    assert first == exam({"q": "a b c"}).identity
    assert first != exam({"q": "a b d"}).identity
    assert first != exam({"q": "a b c"}, length=3).identity


def test_sets_that_cannot_be_used_are_errors(tmp_path, exam):
    with pytest.raises(SimPOError, match="no-such.jsonl does not exist"):
        Decontamination([str(tmp_path / "no-such.jsonl")], 8)
    with pytest.raises(SimPOError, match="exam.jsonl, which holds no text"):
        exam({"number": 3, "text": "?!"})
