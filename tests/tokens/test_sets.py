"""Sets as the trainer gets them: lengths are counted without reading the ids."""

from datasets import Dataset

from models import as_text, random_pairs, word_tokenizer
from simpo_trainer.tokens.rows import TOKEN_COLUMNS
from simpo_trainer.tokens.sets import pair_sources, token_lengths, token_set
from simpo_trainer.tokens.settings import RowSettings


def lengths_of(row):
    prompt, *answers = (len(row[name]) for name in TOKEN_COLUMNS)
    return [prompt, sum(answers), len(answers)]


ROWS = random_pairs(30)
EXPECTED = [lengths_of(row) for row in ROWS]


def test_lengths_of_every_kind_of_set():
    dataset = Dataset.from_list([{**row, "note": "x"} for row in ROWS])
    assert token_lengths(dataset).tolist() == EXPECTED
    assert token_lengths(ROWS).tolist() == EXPECTED
    assert token_lengths(dataset.with_format("torch")).tolist() == EXPECTED
    # Rows that were chosen or moved: the lengths are those of the rows as they are now.
    order = [7, 3, 29, 0]
    assert token_lengths(dataset.select(order)).tolist() == [EXPECTED[place] for place in order]
    shuffled = dataset.shuffle(seed=1)
    assert token_lengths(shuffled).tolist() == [lengths_of(row) for row in shuffled]


def test_lengths_of_a_large_set_are_counted_in_pieces():
    dataset = Dataset.from_list(ROWS * 1000)
    assert token_lengths(dataset).tolist() == EXPECTED * 1000


def test_pairs_to_evaluate_on_keep_their_sources_when_others_are_left_out():
    rows = [{**as_text(row), "source": f"s{i}"} for i, row in enumerate(ROWS[:6])]
    rows[2]["chosen"] = rows[2]["rejected"]
    found = {name: token_set(rows, name, word_tokenizer(), RowSettings()).rows for name in ("eval", "train")}
    kept = found["eval"]["row"][:]
    assert pair_sources(found["eval"]) == [f"s{row}" for row in kept] and 2 not in kept and max(kept) > 2
    assert pair_sources(found["train"]) is None and pair_sources(ROWS) is None
    numbers = [{**row, "source": 1} for row in rows]
    assert pair_sources(token_set(numbers, "eval", word_tokenizer(), RowSettings()).rows) is None
