"""What messages are made of: near names, and the first line of another error."""

import ast
from pathlib import Path

import pytest

from simpo_trainer.errors import did_you_mean, first_line, near

PACKAGE = Path(__file__).parents[1] / "simpo_trainer"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("bta", ["beta"]),
        ("BETA", ["beta"]),
        ("learning-rate", ["learning_rate"]),
        ("chosen_response", ["chosen"]),
        ("seed", []),
    ],
)
def test_near_names(name, found):
    assert near(name, ("beta", "learning_rate", "chosen")) == found


def test_as_many_near_names_as_asked_for():
    names = ["modal", "model", "modelling"]
    assert near("model", names, 3) == ["model", "modal", "modelling"]
    assert near("model", names, 2) == ["model", "modal"]
    assert near("Zero", ["ddp", "zero2", "single", "ZERO2"], 4, cutoff=0)[:2] == ["zero2", "ZERO2"]
    assert len(near("Zero", ["ddp", "zero2", "single", "ZERO2"], 4, cutoff=0)) == 4


def test_did_you_mean_is_a_sentence_or_nothing():
    assert did_you_mean("sigmod", ["sigmoid", "hinge"]) == " Did you mean sigmoid?"
    assert did_you_mean("sigmo", ["sigmoid", "sigma"]) == " Did you mean sigmoid or sigma?"
    assert did_you_mean("sigmo", ["sigmoid", "sigma"], 1) == " Did you mean sigmoid?"
    assert did_you_mean("sigmoid", ["ipo"]) == ""


def test_first_line_of_an_error():
    assert first_line(OSError("\nNo such disk.\nCall somebody.")) == "No such disk"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_near_names_are_looked_for_in_one_place():
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            if "difflib" in modules:
                importing.add(path.relative_to(PACKAGE).as_posix())
    assert importing == {"errors.py"}
