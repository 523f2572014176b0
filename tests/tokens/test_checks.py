"""Rows that came as token ids: a set says what a list of its rows says, without walking over them."""

import math

import pytest
from datasets import Dataset

from models import random_pairs, random_ranked
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens import checks
from simpo_trainer.tokens.checks import check_token_rows
from simpo_trainer.tokens.rows import row_answers, row_length

PAIRS = [{**row, "margin": 0.5 * place} for place, row in enumerate(random_pairs(11))]
RANKED = [{**row, "margin": [0.1] * len(row["chosen"])} for row in random_ranked(11)]
EVERY = {"pairs": PAIRS, "ranked": RANKED}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(checks, "_PIECE", 4)


def longest(rows):
    return max(row_length(row["prompt_ids"], row_answers(row)) for row in rows)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("with_margins", [True, False])
def test_the_longest_of_a_set_is_found_without_walking_over_it(kind, with_margins, monkeypatch):
    rows = EVERY[kind]
    dataset = Dataset.from_list([{**row, "note": "x"} for row in rows])
    dataset = dataset if with_margins else dataset.remove_columns("margin")

    def walk(*arguments):
        raise AssertionError("walked over the rows")

    monkeypatch.setattr(checks, "_check_each", walk)
    for places in (range(11), range(10, -1, -1), *([place] for place in range(11)), [7, 3, 9, 0, 10]):
        chosen = dataset.select(places)
        for form in (chosen, chosen.with_format("torch")):
            assert check_token_rows(form, 64, "train") == longest([rows[place] for place in places])


@pytest.mark.parametrize("place", [0, 6, 10])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(
            ("pairs", {column: value})
            for column in ("prompt_ids", "chosen_ids", "rejected_ids")
            for value in ([], None)
        ),
        *(("pairs", {"margin": margin}) for margin in (-1.0, None, math.nan, math.inf)),
        *(("pairs", {column: [5] * 70}) for column in ("prompt_ids", "chosen_ids", "rejected_ids")),
        *(("ranked", {column: value}) for column in RANKED[0] if column != "margin" for value in ([], None)),
        *(("ranked", {"response_ids": [[5], value, [6], [7], [8]]}) for value in ([], None, [5] * 70)),
        *(("ranked", {"chosen": places}) for places in ([5], [-1], [1], [None], [0, 0])),
        *(("ranked", {"rejected": places}) for places in ([5], [-1], [0], [None], [1, 1])),
        *(("ranked", {"margin": margin}) for margin in ([], None, [0.1, 0.1], [-1.0], [None], [math.nan])),
    ],
)
def test_a_set_says_what_a_list_of_its_rows_says(kind, change, place):
    """Whatever is wrong, and wherever in a piece."""
    rows = list(EVERY[kind])
    if kind == "ranked":
        rows[place] = {**rows[place], "chosen": [0], "rejected": [1], "margin": [0.1]}
    rows[place] = {**rows[place], **change}
    messages = []
    for given in (rows, Dataset.from_list(rows), Dataset.from_list(rows[::-1]).select(range(10, -1, -1))):
        with pytest.raises(SimPOError) as error:
            check_token_rows(given, 64, "train")
        messages.append(str(error.value))
    assert messages[0] == messages[1] == messages[2]
    assert f"row {place} " in messages[0]
