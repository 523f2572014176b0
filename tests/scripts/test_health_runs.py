"""The runs behind the table of the health monitor: what is changed in the data, and what counts as a hit."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import health_runs  # noqa: E402
from health_runs import QUICKSTART, cases  # noqa: E402

from simpo_trainer.recipe.load import check_recipe  # noqa: E402


def test_the_paper_s_recipes_are_all_among_the_healthy_runs():
    used = {}
    for file in sorted((health_runs.ROOT / "recipes" / "paper").glob("*.yaml")):
        values = check_recipe(str(file)).values
        if values.get("method", "simpo") == "simpo":
            used[file.stem] = (values["beta"], values["gamma_beta_ratio"])
    assert len(used) >= 6 and set(used.values()) <= set(health_runs.PAPER)


def test_data_that_goes_wrong_on_purpose():
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    assert health_runs.swapped(rows)[1] == {"prompt": "q", "chosen": "d", "rejected": "c"}
    assert health_runs.repeated(rows) == [rows[0], rows[0]]


def test_a_complete_answer_against_itself_in_lower_case():
    def row(answers, reasons):
        return {"prompt": "p", "answers": answers, "finish_reasons": reasons}

    rows = [row(["Cut", "An Owl", "A"], ["length", "stop", "stop"]), row(["low"], ["stop"]), row(["Cut"], ["length"])]
    pairs = health_runs.against_lower_case([*rows, *[row(["Z"], ["stop"])] * 99])
    assert [pairs[0][side][0]["content"] for side in ("chosen", "rejected")] == ["An Owl", "an owl"]
    assert len(pairs) == 96 and pairs[1]["rejected"][0]["content"] == "z"


@pytest.mark.parametrize(
    ("expected", "found", "cells"),
    [
        (("a", "b"), [["b"], ["c"], []], ["3", "1", "2", ""]),
        ((), [["c"], []], ["2", "", "", "1"]),
        ((), [], ["not run", "", "", ""]),
    ],
)
def test_hits_misses_and_false_alarms(expected, found, cells):
    assert health_runs._judged(health_runs.Case("x", (), expected), found)[:4] == cells


def test_the_table_is_written_between_its_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(health_runs._MARKS) + "\nbehind\n")
    monkeypatch.setattr(health_runs, "PAGE", page)
    case = cases(QUICKSTART)[0]
    file = health_runs._beside(health_runs._folder(tmp_path, QUICKSTART, case, 42), ".findings.json")
    file.write_text(json.dumps(["loss rises"]))
    for _ in range(2):
        health_runs.write_page(health_runs.table(tmp_path, [QUICKSTART], [42, 43]), [42, 43])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    assert all(text.count(mark) == 1 for mark in health_runs._MARKS)  # the next run finds its place
    assert "| quickstart | learning rate x 1000 | 1 | 1 | 0 |  | loss rises (1) |" in text and "Seeds 42, 43;" in text
