"""The scorer that is a function: how it is found, checked and called."""

import re
import sys

import pytest

from answer_files import answer_row
from logs import warnings
from simpo_trainer.errors import SimPOError
from simpo_trainer.scores.function_scorer import FunctionScorer

ROWS = [answer_row(number, ["a", "bb"], target=number) for number in range(3)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory of its own, whose modules no other test finds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(text, name="my_rules.py"):
    with open(name, "w") as file:
        file.write(text)


def scores(name, rows=ROWS):
    return [scores for group in FunctionScorer(name).scores(rows) for _, scores in group]


# --- Finding it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my_rules.score", "my_rules.py:score", "my_rules:score", "./my_rules.py:score"])
def test_function_of_the_current_directory(name):
    write("from helper import size\ndef score(prompt, answer, row):\n    return size(answer) + row['target']\n")
    write("size = len\n", "helper.py")
    assert scores(name) == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]


def test_function_of_a_package(folder):
    (folder / "graders").mkdir()
    write("def score(prompt, answer, row):\n    return True\n", "graders/short.py")
    assert scores("graders.short.score") == [[1.0, 1.0]] * 3


def test_the_file_may_have_the_name_of_another_module():
    write("def score(prompt, answer, row):\n    return 2\n", "json.py")
    assert scores("json.py:score")[0] == [2.0, 2.0]


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_rulse.score", "no module 'my_rulse' here .* Did you mean my_rules.py?"),
        ("my_rulse.py:score", "no file my_rulse.py. Did you mean my_rules.py?"),
        ("my_rules.scores", "no 'scores' in it. Did you mean score?"),
        ("my_rules.py", "must name a file or module and a function in it, as my_rules.py:score"),
        ("score", "must name a file or module and a function in it"),
        ("my_rules.NUMBER", "which is int; it must be a function"),
        ("my_rules.one", r"takes \(answer\); it is called with \(prompt, answer, row\)"),
        ("my_rules.four", r"takes \(prompt, answer, row, more\)"),
        (
            "my_rules.swapped",
            r"takes \(answer, prompt, row\); .* \(prompt, answer, row\), in this order",
        ),
        ("my_rules.later", "an async function"),
    ],
)
def test_what_cannot_be_used_is_an_error(name, message):
    write(
        "NUMBER = 3\n"
        "def score(prompt, answer, row): return 1\n"
        "def one(answer): return 1\n"
        "def four(prompt, answer, row, more): return 1\n"
        "def swapped(answer, prompt, row): return 1\n"
        "async def later(prompt, answer, row): return 1\n"
    )
    with pytest.raises(SimPOError, match=message):
        FunctionScorer(name)


@pytest.mark.parametrize("signature", ["*given", "messages, text, columns", "prompt, answer, row, scale=2"])
def test_other_signatures_that_take_three_arguments(signature):
    write(f"def score({signature}): return 1\n")
    assert scores("my_rules.score")[0] == [1.0, 1.0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("import no_such_module\n", r"ModuleNotFoundError: No module named 'no_such_module' \(my_rules.py, line 1\)"),
        ("\n\ndef score(:\n", "SyntaxError: .*line 3"),
        ("x = 1\ny = x / 0\n", r"ZeroDivisionError: division by zero \(my_rules.py, line 2\)"),
    ],
)
@pytest.mark.parametrize("name", ["my_rules.score", "my_rules.py:score"])
def test_what_cannot_be_imported_is_an_error(name, text, message):
    write(text)
    with pytest.raises(SimPOError, match=f"cannot be imported: {message}"):
        FunctionScorer(name)


# --- Calling it -------------------------------------------------------------------------------------------------------


def test_a_call_that_raises_scores_nothing_and_is_told(caplog):
    write("def score(prompt, answer, row):\n    return 1 / (len(answer) - row['target'])\n")
    assert scores("my_rules.score") == [[1.0, 0.5], [None, 1.0], [-1.0, None]]
    told = warnings(caplog)
    assert len(told) == 2
    assert re.search(
        f"'Say something on the number 1.' .key {ROWS[1]['key']}. could not be scored by the function: "
        r"ZeroDivisionError: division by zero \(my_rules.py, line 2\)",
        told[0],
    )


def test_the_first_failures_are_told_and_the_others_counted(caplog):
    write("def score(prompt, answer, row):\n    raise KeyError('x')\n")
    assert scores("my_rules.score", ROWS * 2) == [[None, None]] * 6
    told = warnings(caplog)
    assert len(told) == 6
    assert told[-1].startswith("12 answers could not be scored")


@pytest.mark.parametrize("returned", ["None", "float('nan')", "float('inf')", "'3'", "[1]", "10 ** 400"])
def test_what_is_no_finite_number_scores_nothing(returned, caplog):
    write(f"def score(prompt, answer, row):\n    return {returned}\n")
    assert scores("my_rules.score", ROWS[:1]) == [[None, None]]
    assert "no finite number" in warnings(caplog)[0]


@pytest.mark.parametrize("returned", ["True", "1", "__import__('torch').tensor(1.0)", "__import__('numpy').float32(1)"])
def test_numbers_of_every_kind(returned):
    write(f"def score(prompt, answer, row):\n    return {returned}\n")
    assert scores("my_rules.score", ROWS[:1]) == [[1.0, 1.0]]


def test_what_the_function_does_to_its_arguments_stays_there():
    write("def score(prompt, answer, row):\n    prompt.clear(); row.clear(); row.update(prompt=[]); return 1\n")
    rows = [answer_row(1)]
    list(FunctionScorer("my_rules.score").scores(rows))
    assert rows == [answer_row(1)]


def test_the_identity_follows_the_source(monkeypatch):
    write("def score(prompt, answer, row):\n    return 1\n")
    first = FunctionScorer("my_rules.py:score").identity
    assert first == FunctionScorer("my_rules.py:score").identity
    write("def score(prompt, answer, row):\n    return 22\n")
    assert first != FunctionScorer("my_rules.py:score").identity


def test_the_identity_names_no_folder(folder):
    write("def score(prompt, answer, row):\n    return 1\n")
    assert FunctionScorer(f"{folder}/my_rules.py:score").identity["name"] == "local file 'my_rules.py':score"
