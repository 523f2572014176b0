"""Scored answers to rows: pairs, ranked rows, and the prompts that give none."""

import pytest

from simpo_trainer.scores.selection import kept_columns, select
from toy import assistant, user


def row(answers, scores, key="a", **columns):
    return {
        "key": key,
        "prompt": [user(f"question {key}")],
        "answers": answers,
        "finish_reasons": ["stop"] * len(answers),
        "token_counts": [3] * len(answers),
        "seeds": list(range(len(answers))),
        "scores": scores,
        **columns,
    }


def pairs(answers, scores, rule, least_gap=0.0):
    selection = select([row(answers, scores)], rule, least_gap)
    return [(each["chosen"][0]["content"], each["rejected"][0]["content"]) for each in selection.rows]


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_best_worst_makes_one_pair():
    assert pairs(["x", "y", "z"], [1.0, 3.0, 2.0], "best_worst") == [("y", "x")]


def test_of_equally_good_answers_best_worst_takes_the_first():
    assert pairs(["a", "b", "c", "d", "e"], [1.0, 2.0, 2.0, 1.0, 1.5], "best_worst") == [("b", "a")]


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("all", [("b", "a"), ("b", "c"), ("c", "a")]),
        ("adjacent", [("b", "c"), ("c", "a")]),
    ],
)
def test_all_and_adjacent(rule, expected):
    assert sorted(pairs(["a", "b", "c"], [1.0, 3.0, 2.0], rule)) == expected


def test_pairs_hold_the_scores_and_the_other_columns():
    [made] = select([row(["x", "y"], [1.0, 3.0], tools=[{"name": "t"}], kind="sum")], "best_worst", 0).rows
    assert made == {
        "prompt": [user("question a")],
        "chosen": [assistant("y")],
        "rejected": [assistant("x")],
        "chosen_score": 3.0,
        "rejected_score": 1.0,
        "key": "a",
        "tools": [{"name": "t"}],
        "kind": "sum",
    }


def test_ranked_rows_have_the_best_first():
    [made] = select([row(["x", "y", "z"], [1.0, 3.0, 1.0])], "ranked", 0).rows
    assert made["responses"] == [[assistant("y")], [assistant("x")], [assistant("z")]]
    assert made["scores"] == [3.0, 1.0, 1.0]
    assert made["key"] == "a"


def test_rows_are_sorted_by_key():
    rows = [row(["x", "y"], [1.0, 3.0], key) for key in ("c", "a", "b")]
    assert [made["key"] for made in select(rows, "best_worst", 0).rows] == ["a", "b", "c"]


def test_columns_that_a_trainer_would_read_are_not_kept():
    columns = {"margin": 1, "chosen": "c", "rejected": "r", "responses": [], "ranks": [], "media_in": "x"}
    assert kept_columns(row(["x"], [1.0], **columns)) == {"key": "a"}


# --- Answers and prompts that give no row -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers, scores, reason",
    [
        (["x", "y"], [1.0, 1.0], "all answers tie"),
        (["x", "y"], [1.0, None], "fewer than two scored answers"),
        (["x", "y"], [None, None], "fewer than two scored answers"),
        (["x", "x"], [1.0, 2.0], "all answers the same"),
        (["x", ""], [1.0, 2.0], "fewer than two scored answers"),
        (["x", "y"], [1.0, 1.4], "scores too close"),
    ],
)
@pytest.mark.parametrize("rule", ["best_worst", "all", "adjacent", "ranked"])
def test_prompts_that_give_no_row(rule, answers, scores, reason):
    selection = select([row(answers, scores)], rule, 0.5)
    assert selection.rows == []
    assert selection.left_out == {reason: 1}


def test_the_first_of_identical_answers_is_kept():
    selection = select([row(["x", "y", "x", "y"], [1.0, 2.0, 5.0, 2.0])], "all", 0)
    assert [(each["chosen_score"], each["rejected_score"]) for each in selection.rows] == [(2.0, 1.0)]
    assert (selection.identical, selection.identical_but_scored_otherwise) == (2, 1)


def test_an_identical_answer_stands_in_for_one_without_a_score():
    assert pairs(["x", "x", "y"], [None, 1.0, 0.0], "best_worst") == [("x", "y")]


def test_empty_answers_are_passed_over():
    selection = select([row(["", " \n", "x", "y"], [9.0, -9.0, 1.0, 2.0])], "best_worst", 0)
    assert [each["chosen_score"] for each in selection.rows] == [2.0]
    assert selection.empty == 2


def test_the_least_gap_holds_for_each_pair():
    assert pairs(["a", "b", "c"], [0.0, 1.0, 3.0], "all", 2.0) == [("c", "b"), ("c", "a")]
    assert pairs(["a", "b", "c"], [0.0, 1.0, 3.0], "adjacent", 2.0) == [("c", "b")]


def test_a_gap_of_decimals_is_enough_where_it_is_equal():
    assert pairs(["a", "b"], [0.2, 0.3], "best_worst", 0.1) == [("b", "a")]
