"""Conversations written as text are the same tokens as conversations; honest texts stay what they are."""

import json
import logging

import pytest
from datasets import Dataset, Features, IterableDataset, List, Value

from pair_files import load, write
from simpo_trainer.baselines.rows import conversation_rows
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.written import read_written
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import assistant, toy_pairs, toy_tokenizer, user

CHAT = toy_pairs(6, conversational=True)
CHAT[0]["chosen"][0]["content"] = 'It\'s "so",\nyes: é'
TEXT = toy_pairs(6)
SETTINGS = RowSettings(max_length=512, max_prompt_length=256)
TAGS = {"user": "human", "assistant": "gpt"}


def tokens(rows):
    whole = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows), features=rows.features)
    tokenized, report = tokenize_preferences(whole, toy_tokenizer(), SETTINGS)
    return tokenized.to_list(), {reason: dropped.count for reason, dropped in report.dropped.items()}


EXPECTED = tokens(Dataset.from_list(CHAT))


def turns(messages):
    return [{"from": TAGS[message["role"]], "value": message["content"]} for message in messages]


def indented(value):
    return "\n" + json.dumps(value, indent=1)


def explicit(row):
    return row


def single(row):
    return {"prompt": row["prompt"], **{side: row[side][0] for side in ("chosen", "rejected")}}


def whole(row):
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def sharegpt(row):
    return {field: turns(messages) for field, messages in row.items()}


def beside(row):
    return {"messages": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


def beside_turns(row):
    return {"conversations": turns(row["prompt"]), **{side: turns(row[side])[0] for side in ("chosen", "rejected")}}


@pytest.mark.slow
@pytest.mark.parametrize("write_cell", [json.dumps, str, indented])
@pytest.mark.parametrize("written", [explicit, single, whole, sharegpt, beside, beside_turns])
@pytest.mark.parametrize("kind", [".csv", ".jsonl", "stream"])
def test_messages_in_cells_of_text_are_conversations(tmp_path, kind, written, write_cell):
    rows = [{field: write_cell(value) for field, value in written(row).items()} for row in CHAT]
    path = write(tmp_path / f"pairs{'.csv' if kind == 'stream' else kind}", rows)
    train, _ = load(path, streaming=kind == "stream")
    assert sorted(map(str, tokens(train)[0])) == sorted(map(str, EXPECTED[0])) or kind == "stream"
    if kind == "stream":  # shuffled
        ids = sorted(row["chosen_ids"] for row in tokens(train)[0])
        assert ids == sorted(row["chosen_ids"] for row in EXPECTED[0])


@pytest.mark.parametrize("written", [explicit, single, whole, sharegpt])
def test_rows_that_a_program_hands_over(written):
    rows = Dataset.from_list([{field: json.dumps(value) for field, value in written(row).items()} for row in CHAT])
    assert tokens(rows) == EXPECTED
    untyped = IterableDataset.from_generator(lambda: iter(rows))
    for stream in (rows.to_iterable_dataset(), untyped):
        found = list(tokenize_stream(stream, toy_tokenizer(), SETTINGS))
        assert [row["chosen_ids"] for row in found] == [row["chosen_ids"] for row in EXPECTED[0]]


def test_text_prompt_beside_whole_conversations_as_pandas_writes_them(tmp_path):
    rows = [
        {"prompt": row["prompt"][0]["content"], **{side: str(value) for side, value in whole(row).items()}}
        for row in CHAT
    ]
    assert tokens(load(write(tmp_path / "pairs.csv", rows))[0]) == EXPECTED


def test_ranked_answers():
    rows = [
        {"prompt": json.dumps(row["prompt"]), "responses": [json.dumps(row[side]) for side in ("chosen", "rejected")]}
        | {"scores": [2.0, 1.0]}
        for row in CHAT
    ]
    found, dropped = tokens(Dataset.from_list(rows))
    assert dropped == {}
    assert [row["response_ids"][0] for row in found] == [row["chosen_ids"] for row in EXPECTED[0]]


def test_named_columns_and_nested_places(tmp_path):
    flat = [{"q": json.dumps(r["prompt"]), "a": json.dumps(r["chosen"]), "b": json.dumps(r["rejected"])} for r in CHAT]
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert tokens(load(write(tmp_path / "flat.csv", flat), columns=columns)[0]) == EXPECTED
    columns = {field: f"in.{place}" for field, place in columns.items()}
    assert tokens(load(write(tmp_path / "nested.jsonl", [{"in": row} for row in flat]), columns=columns)[0]) == EXPECTED


def test_mixed_with_a_source_of_conversations(tmp_path):
    texts = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT[:3]]
    first, second = write(tmp_path / "a.csv", texts), write(tmp_path / "b.jsonl", CHAT[3:])
    train, _ = load_preferences(DataConfig(dataset_mixer={first: 1, second: 1}))
    assert tokens(train) == EXPECTED


def test_evaluation_set(tmp_path):
    texts = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT]
    _, held_out = load(write(tmp_path / "a.jsonl", CHAT), eval_dataset_name=write(tmp_path / "b.csv", texts))
    assert tokens(held_out) == EXPECTED


HONEST = [
    '[{"role": "assistant", "content": "A payload."}]',  # code that was asked for
    '[{"name": "a", "price": 5}]',
    '{"role": "manager", "content": "x"}',
    "[1, 2, 3]",
    "[]",
    '[{"role": "assistant", "content": "A payload."}] is how it is written.',
]


@pytest.mark.parametrize("answer", HONEST)
def test_answers_that_are_data_stay_texts(answer):
    rows = [TEXT[0] | {"chosen": answer, "rejected": answer.replace("a", "b")}, *TEXT[1:]]
    dataset = Dataset.from_list(rows)
    assert read_written(dataset, "set") is dataset
    assert tokens(dataset)[0][0]["chosen_ids"] != []


def test_payloads_that_a_text_asks_for_stay_texts_and_are_told(caplog):
    payload = [json.dumps([assistant(text)]) for text in ("a", "b")]
    rows = Dataset.from_list([TEXT[0] | dict(zip(("chosen", "rejected"), payload, strict=True)), *TEXT[1:]])
    with caplog.at_level(logging.INFO):
        kept = read_written(rows, "set")
    assert kept is rows
    # Nothing is a conversation here, so nothing is said of rows that are.
    assert "the answers of 1 of 6 rows are messages written as text" in caplog.text


def test_set_of_payloads_that_texts_ask_for_stays_texts(caplog):
    payload = [json.dumps([user("Greet"), assistant(text)]) for text in ("Hi", "Ho")]
    rows = Dataset.from_list([row | dict(zip(("chosen", "rejected"), payload, strict=True)) for row in TEXT])
    assert read_written(rows, "set") is rows
    assert "the answers of 6 of 6 rows are messages written as text" in caplog.text


def test_texts_among_conversations_are_counted_and_told(caplog):
    texts = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT[:4]]
    for rows in (texts + TEXT[:2], texts[:2] + TEXT[:4]):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found, dropped = tokens(Dataset.from_list(rows))
        assert (len(found), dropped) == (6, {})
        assert [row["chosen_ids"] for row in found[:2]] == [row["chosen_ids"] for row in EXPECTED[0][:2]]
        count = 4 if rows[3] is texts[3] else 2
        assert f"messages written as text in {count} of 6 rows; they are read as conversations" in caplog.text
        assert f"{count} of 6 rows are conversations, which the chat template writes, and {6 - count}" in caplog.text


def test_mixture_that_was_written_as_one_is_told_too(caplog):
    tokens(Dataset.from_list(CHAT[:4] + TEXT[:2], on_mixed_types="use_json"))
    assert "4 of 6 rows are conversations" in caplog.text


@pytest.mark.parametrize(
    "cut", ['[{"role": "assistant", "content": "A tro', "[{'content': 'A', 'role': 'user'}\n {'a': 1}]"]
)
def test_what_cannot_be_read_is_dropped_with_the_remedy(cut):
    texts = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT]
    _, dropped = tokens(Dataset.from_list([texts[0] | {"chosen": cut}, *texts[1:]]))
    assert dropped == {"unread_messages": 1}
    with pytest.raises(SimPOError, match=r"(?s)6 \(unread_messages, first row 0\).*Write them as JSON \(json.dumps"):
        tokens(Dataset.from_list([row | {"chosen": cut} for row in texts]))


def test_null_cells_are_missing_fields():
    texts = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT]
    rows = [texts[0] | {"chosen": None}, texts[1] | {"prompt": None}, *texts[2:]]
    assert tokens(Dataset.from_list(rows))[1] == {"missing_field": 2}


def test_messages_in_the_prompt_alone(tmp_path):
    rows = [row | {"prompt": json.dumps([user("Hi")])} for row in TEXT]
    path = write(tmp_path / "pairs.csv", rows)
    with pytest.raises(SimPOError, match=r"'prompt' holds messages written as text.*set dataset_format: sharegpt"):
        load(path)
    found, dropped = tokens(load(path, dataset_format="sharegpt", columns={"prompt": "prompt"})[0])
    assert (len(found), dropped) == (6, {})


def test_alpaca_asked_for(tmp_path):
    rows = [{field: json.dumps(value) for field, value in row.items()} for row in CHAT]
    with pytest.raises(SimPOError, match="Remove dataset_format"):
        load(write(tmp_path / "pairs.csv", rows), dataset_format="alpaca")


def test_conversations_without_answers_to_choose_from(tmp_path):
    rows = [{"messages": json.dumps(row["prompt"] + row["chosen"])} for row in CHAT]
    path = write(tmp_path / "rows.csv", rows)
    train, _ = load_preferences(DataConfig(dataset_name=path), conversations=True)
    expected = [row["prompt"] + row["chosen"] for row in CHAT]
    assert train["messages"][:] == expected
    handed_over = conversation_rows(Dataset.from_list(rows), "set", toy_tokenizer(), RowSettings())
    assert handed_over["messages"][:] == expected
    with pytest.raises(SimPOError, match="messages of row 1 are the text 'Hi'"):
        conversation_rows(Dataset.from_list([rows[0], {"messages": "Hi"}]), "set", toy_tokenizer(), RowSettings())


def test_type_holds_messages_only_where_no_text_is_left():
    features = Features(dict.fromkeys(("chosen", "rejected"), Value("string")))
    rows = [{side: json.dumps([user("a"), assistant(side)]) for side in ("chosen", "rejected")}] * 3
    assert isinstance(read_written(Dataset.from_list(rows, features=features), "set").features["chosen"], List)
    rows = [*rows, {"chosen": "a b", "rejected": "a c"}]
    assert not isinstance(read_written(Dataset.from_list(rows, features=features), "set").features["chosen"], List)


def test_format_of_a_set_is_no_matter():
    rows = Dataset.from_list([{field: json.dumps(value) for field, value in row.items()} for row in CHAT])
    assert tokens(rows.with_format("torch")) == EXPECTED
