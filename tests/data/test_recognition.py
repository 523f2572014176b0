"""A prompt in messages beside answers of one message each is read, or refused with the name to give."""

import logging

import pytest
from datasets import Dataset, Features, IterableDataset, List, Value

from pair_files import load, write
from simpo_trainer.data.recognition import messages_prompt
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import assistant, toy_pairs, toy_tokenizer, user

CHAT = toy_pairs(5, conversational=True)
SETTINGS = RowSettings(max_length=512, max_prompt_length=256)
TAGS = {"user": "human", "assistant": "gpt"}


def tokens(rows):
    whole = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows), features=rows.features)
    tokenized, report = tokenize_preferences(whole, toy_tokenizer(), SETTINGS)
    assert report.dropped == {}
    return sorted(row.get("chosen_ids") or row["response_ids"][0] for row in tokenized.to_list())


EXPECTED = tokens(Dataset.from_list(CHAT))


def turn(message):
    return {"from": TAGS[message["role"]], "value": message["content"]}


def of_messages(row):
    return {side: row[side] for side in ("chosen", "rejected")}


def of_one(row):
    return {side: row[side][0] for side in ("chosen", "rejected")}


def of_turns(row):
    return {side: turn(row[side][0]) for side in ("chosen", "rejected")}


def ranked(row):
    return {"responses": [row["chosen"], row["rejected"]], "scores": [2, 1]}


def ranked_singles(row):
    return {"responses": [row["chosen"][0], row["rejected"][0]], "ranks": [1, 2]}


@pytest.mark.slow
@pytest.mark.parametrize("answers", [of_messages, of_one, of_turns, ranked, ranked_singles])
@pytest.mark.parametrize("column", ["messages", "conversation", "conversations", "history"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", "stream"])
def test_prompt_in_messages(tmp_path, column, answers, suffix):
    shape = (lambda messages: list(map(turn, messages))) if answers is of_turns else list
    rows = [{column: shape(row["prompt"]), **answers(row)} for row in CHAT]
    path = write(tmp_path / f"pairs{'.jsonl' if suffix == 'stream' else suffix}", rows)
    assert tokens(load(path, streaming=suffix == "stream")[0]) == EXPECTED
    assert tokens(load(path, dataset_format="sharegpt")[0]) == EXPECTED


def test_column_is_told(tmp_path, caplog):
    rows = [{"messages": row["prompt"], **of_one(row)} for row in CHAT]
    with caplog.at_level(logging.INFO):
        load(write(tmp_path / "pairs.jsonl", rows))
    assert "read as sharegpt rows with the prompt in 'messages'" in caplog.text


def test_answers_of_other_names_and_a_named_prompt(tmp_path):
    rows = [{"messages": row["prompt"], "a": row["chosen"], "meta": {"b": row["rejected"]}} for row in CHAT]
    path, columns = write(tmp_path / "pairs.jsonl", rows), {"chosen": "a", "rejected": "meta.b"}
    assert tokens(load(path, columns=columns)[0]) == EXPECTED
    assert tokens(load(path, columns=columns | {"prompt": "messages"})[0]) == EXPECTED


def test_earlier_turns_and_tools_belong_to_the_prompt(tmp_path):
    turns = [user("Hello"), assistant("Hi!")]
    rows = [{"messages": turns + row["prompt"], **of_one(row)} for row in CHAT]
    expected = tokens(Dataset.from_list([row | {"prompt": turns + row["prompt"]} for row in CHAT]))
    assert tokens(load(write(tmp_path / "pairs.jsonl", rows))[0]) == expected


def test_whole_conversations_keep_their_own_prompt(tmp_path):
    rows = [
        {
            "messages": row["prompt"] + row["chosen"],
            **{side: row["prompt"] + row[side] for side in ("chosen", "rejected")},
        }
        for row in CHAT
    ]
    assert tokens(load(write(tmp_path / "pairs.jsonl", rows))[0]) == EXPECTED


def test_messages_that_end_with_an_answer_are_no_prompt():
    rows = Dataset.from_list([{"messages": row["prompt"] + row["chosen"], **of_messages(row)} for row in CHAT])
    assert messages_prompt(rows, {}, rows.features) is None


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations", "history"])
@pytest.mark.parametrize("answers", [of_messages, of_one, ranked_singles])
def test_rows_that_a_program_hands_over_name_the_column(column, answers):
    rows = [{column: row["prompt"], **answers(row)} for row in CHAT]
    wanted = "'prompt'" if answers is ranked_singles else f"the column '{column}' seems to hold it.*renaming it"
    with pytest.raises(SimPOError, match=wanted):
        tokens(Dataset.from_list(rows))
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(SimPOError, match=wanted):
        tokenize_stream(stream, toy_tokenizer(), SETTINGS)
    assert tokens(Dataset.from_list(rows).rename_column(column, "prompt")) == EXPECTED


@pytest.mark.parametrize("answers", [of_messages, of_one])
@pytest.mark.parametrize("column", ["question", "instruction", "query", "input"])
def test_text_beside_single_messages_is_named(tmp_path, column, answers):
    rows = [{column: row["prompt"][0]["content"], **answers(row)} for row in CHAT]
    path = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(SimPOError, match=f"by `columns: {{prompt: {column}}}`"):
        load(path)
    assert tokens(load(path, columns={"prompt": column})[0]) == EXPECTED
    with pytest.raises(SimPOError, match=f"the column '{column}' seems to hold it"):
        tokens(Dataset.from_list(rows))


def test_history_beside_a_question_is_not_the_whole_prompt():
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"history": List(message), "question": Value("string"), "chosen": message, "rejected": message})
    rows = Dataset.from_list(
        [{"history": [user("Hello")], "question": "What?", **of_one(row)} for row in CHAT], features=features
    )
    assert messages_prompt(rows, {}, features) is None
    with pytest.raises(SimPOError, match="'history' and 'question' seem to hold it. Write both as one list"):
        tokens(rows)


def test_keys_of_other_messages_are_not_added(tmp_path):
    rows = [{"messages": row["prompt"], **of_one(row)} for row in CHAT]
    rows[1]["messages"] = [row | {"name": "Ann"} for row in rows[1]["messages"]]
    train, _ = load(write(tmp_path / "pairs.parquet", rows))
    assert [row["prompt"] for row in train] == [row["messages"] for row in rows]


def test_turns_in_a_column_prompt(tmp_path):
    rows = [{"prompt": list(map(turn, row["prompt"])), **of_turns(row)} for row in CHAT]
    assert tokens(load(write(tmp_path / "pairs.jsonl", rows))[0]) == EXPECTED
    named = [{"q" if key == "prompt" else key: value for key, value in row.items()} for row in rows]
    assert tokens(load(write(tmp_path / "named.jsonl", named), columns={"prompt": "q"})[0]) == EXPECTED
