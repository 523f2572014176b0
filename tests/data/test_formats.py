"""Foreign row shapes: the same pairs in every format are the same tokens, what cannot be read is dropped or named."""

import json
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, Json, Value

from pair_files import load, write
from simpo_trainer.data import load as preferences
from simpo_trainer.data.formats import to_pairs
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import assistant, toy_pairs, toy_tokenizer, user

COUNT = 7
TEXT = toy_pairs(COUNT)
CHAT = toy_pairs(COUNT, conversational=True)
# The same with an earlier turn, a line break inside, and text that looks like a number or JSON.
for _row in CHAT:
    _row["prompt"] = [user("Hello,\n\nyou"), assistant("17"), *_row["prompt"]]
CHAT[1]["prompt"][0]["content"] = '{"a": 1}'
TAGS = {"user": "human", "assistant": "gpt"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(preferences, "_shuffled_stream", lambda stream, *args: stream)  # rows are compared in order


def turn(message):
    return {"from": TAGS[message["role"]], "value": message["content"]}


def tokens(rows):
    """Ids of the rows of a set, whatever it is, and the reasons for which rows were dropped."""
    whole = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows), features=rows.features)
    tokenized, report = tokenize_preferences(
        whole, toy_tokenizer(), RowSettings(max_length=512, max_prompt_length=256, overlong="truncate")
    )
    return tokenized.to_list(), {reason: dropped.count for reason, dropped in report.dropped.items()}


def implicit(row):
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def sharegpt(row):
    sides = {side: turn(row[side][0]) for side in ("chosen", "rejected")}
    return {"conversations": [turn(message) for message in row["prompt"]], **sides}


def alpaca(row):
    first, reply, last = (message["content"] for message in row["prompt"])
    asked, _, rest = last.partition("\n")
    sides = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
    return {"instruction": asked, "input": rest, "history": [[first, reply]], **sides}


def old_alpaca(row):
    row = alpaca(row)
    return {**row, "output": [row.pop("chosen"), row.pop("rejected")]}


def hh_rlhf(row):
    def text(messages):
        names = {"user": "Human", "assistant": "Assistant"}
        return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)

    return {side: text(row["prompt"] + row[side]) for side in ("chosen", "rejected")}


def nested(row):
    answers = {"best": {"turns": row["chosen"]}, "all": [{"turns": row["rejected"]}]}
    return {"chosen": "not this", "ask.ed": row["prompt"], "answers": answers}


NESTED = {"prompt": "ask.ed", "chosen": "answers.best.turns", "rejected": "answers.all.0.turns"}
# Conversations: how a row is written, and the settings that read it.
CHAT_FORMATS = {
    "explicit": (lambda row: row, {}),
    "implicit": (implicit, {}),
    "repeated_prompt": (lambda row: {"prompt": row["prompt"][0]["content"], **implicit(row)}, {}),
    "more_columns": (lambda row: {"id": "x", "source": {"a": 1}, **row}, {}),
    "sharegpt": (sharegpt, {}),
    "sharegpt_asked": (sharegpt, {"dataset_format": "sharegpt"}),
    "alpaca": (alpaca, {}),
    "old_alpaca": (old_alpaca, {}),
    "hh_rlhf": (hh_rlhf, {"dataset_format": "hh_rlhf"}),
    "nested": (nested, {"columns": NESTED}),
}


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_conversations_of_every_format_are_the_same_tokens(tmp_path, name, suffix, streaming):
    written, settings = CHAT_FORMATS[name]
    path = write(tmp_path / f"pairs{suffix}", [written(row) for row in CHAT])
    train, _ = load(path, streaming=streaming, **settings)
    assert isinstance(train, datasets.IterableDataset) == streaming
    expected, dropped = tokens(Dataset.from_list(CHAT))
    assert (len(expected), dropped) == (COUNT, {})
    assert tokens(train) == (expected, {})
    assert set(train.column_names) <= {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("columns", [None, {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}])
def test_texts_of_every_file_are_the_same_tokens(tmp_path, suffix, streaming, columns):
    names = columns or {}
    rows = [{names.get(field, field): text for field, text in row.items()} for row in TEXT]
    train, _ = load(write(tmp_path / f"pairs{suffix}", rows), streaming=streaming, columns=columns)
    assert tokens(train) == tokens(Dataset.from_list(TEXT))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_mixtures_are_the_same_tokens(tmp_path, streaming):
    halves = {
        write(tmp_path / "a.jsonl", CHAT[:3]): 1,
        write(tmp_path / "b.parquet", list(map(implicit, CHAT[3:5]))): 1.0,
    }
    halves[write(tmp_path / "c.json", [sharegpt(row) for row in CHAT[5:]])] = 1
    expected = tokens(Dataset.from_list(CHAT))
    train, _ = load_preferences(DataConfig(dataset_mixer=halves, streaming=streaming))
    assert tokens(train) == expected
    train, _ = load_preferences(DataConfig(datasets=[{"path": path} for path in halves], streaming=streaming))
    assert tokens(train) == expected


# --- Recognising ------------------------------------------------------------------------------------------------------


def test_one_line_says_how_rows_are_read(tmp_path, caplog):
    caplog.set_level("INFO", logger="simpo_trainer")
    load(write(tmp_path / "plain.jsonl", CHAT))
    assert "rows. If they are not" not in caplog.text
    load(write(tmp_path / "foreign.jsonl", [sharegpt(row) for row in CHAT]))
    assert "foreign.jsonl: read as sharegpt rows. If they are not, set dataset_format: pairs." in caplog.text


def test_other_columns_do_not_make_pairs_foreign(tmp_path):
    rows = [{"instruction": "x", "conversations": [{"from": "human", "value": "y"}], **row} for row in CHAT]
    assert load(write(tmp_path / "a.jsonl", rows))[0].to_list() == CHAT
    rows = [{"conversations": [{"from": "human", "value": "y"}], **implicit(row)} for row in CHAT]
    assert load(write(tmp_path / "b.jsonl", rows))[0].to_list() == [implicit(row) for row in CHAT]
    assert load(write(tmp_path / "d.jsonl", [{"instruction": "x", **row} for row in TEXT]))[0].to_list() == TEXT
    texts = [{"instruction": "x", "chosen": "x y", "rejected": "x z"}]
    assert load(write(tmp_path / "c.jsonl", texts), dataset_format="pairs")[0].to_list() == [
        {"chosen": "x y", "rejected": "x z"}
    ]


@pytest.mark.parametrize("row_format, missing", [("sharegpt", "conversations"), ("alpaca", "instruction")])
def test_format_without_its_columns(row_format, missing):
    rows = Dataset.from_list([{"chosen": "a", "rejected": "b", "text": "c"}])
    with pytest.raises(
        SimPOError, match=rf"set: {row_format} rows need the column '{missing}'; the columns are 'chosen'"
    ):
        to_pairs(rows, None, row_format, "set")


def test_prompt_may_be_named_in_foreign_rows():
    rows = Dataset.from_list([{"system": "Be kind.", "question": "q", "chosen": "a", "rejected": "b"}])
    found = to_pairs(rows, {"prompt": "question"}, "alpaca", "set")[0]
    assert found["prompt"] == [{"role": "system", "content": "Be kind."}, user("q")]


QUESTIONS = [
    {"system": "Be kind.", "question": f"{i} and {i}?", "chosen": f"{2 * i}", "rejected": "no"} for i in range(3)
]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["question", "input", "query", "context"])
def test_prompt_in_a_column_of_another_name_is_not_left_out(tmp_path, column, streaming):
    rows = [{column if key == "question" else key: text for key, text in row.items()} for row in QUESTIONS]
    path = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(SimPOError, match=rf"columns: {{prompt: {column}}}`, and dataset_format: chat .*'system'"):
        load(path, streaming=streaming)
    train, _ = load(path, streaming=streaming, columns={"prompt": column}, dataset_format="alpaca")
    system = {"role": "system", "content": "Be kind."}
    assert [row["prompt"] for row in train] == [[system, user(row["question"])] for row in QUESTIONS]
    assert load(path, columns={"prompt": column})[0]["prompt"][:] == [row["question"] for row in QUESTIONS]
    assert load(path, dataset_format="pairs")[0].column_names == ["chosen", "rejected"]  # as it is asked for


@pytest.mark.parametrize("streaming", [False, True])
def test_prompt_in_the_messages_of_another_column_is_not_left_out(tmp_path, streaming):
    turns = [
        {"conversations": [{"from": "human", "value": row["question"]}], "chosen": "a", "rejected": "b"}
        for row in QUESTIONS
    ]
    path = write(tmp_path / "turns.jsonl", turns)
    with pytest.raises(SimPOError, match="'conversations' is there.* Set dataset_format: sharegpt to make"):
        load(path, streaming=streaming)
    train, _ = load(path, streaming=streaming, dataset_format="sharegpt")
    expected = [
        {"prompt": [user(row["question"])], "chosen": [assistant("a")], "rejected": [assistant("b")]}
        for row in QUESTIONS
    ]
    assert list(train) == expected
    messages = [{"messages": [user(row["question"])], "chosen": "a", "rejected": "b"} for row in QUESTIONS]
    path = write(tmp_path / "messages.jsonl", messages)
    with pytest.raises(SimPOError, match=r"Set dataset_format: sharegpt, and `columns: {prompt: messages}`, to make"):
        load(path, streaming=streaming)
    settings = {"dataset_format": "sharegpt", "columns": {"prompt": "messages"}}
    assert list(load(path, streaming=streaming, **settings)[0]) == expected


def test_system_may_be_named():
    rows = Dataset.from_list([{"said": "Be kind.", "question": "q", "chosen": "a", "rejected": "b"}])
    places = {"prompt": "question", "system": "said"}
    found = to_pairs(rows, places, "alpaca", "set")[0]
    assert found["prompt"] == [{"role": "system", "content": "Be kind."}, user("q")]
    with pytest.raises(SimPOError, match="'system', which pairs rows do not have. Set dataset_format: chat"):
        to_pairs(rows, places, None, "set")


@pytest.mark.parametrize("streaming", [False, True])
def test_column_prompt_is_no_question_beside_the_right_one(tmp_path, streaming):
    for row_format, written in (("alpaca", alpaca), ("sharegpt", sharegpt)):
        rows = [{"prompt": "an unrelated text", **written(row)} for row in CHAT]
        path = write(tmp_path / f"{row_format}.jsonl", rows)
        assert list(load(path, streaming=streaming, dataset_format=row_format)[0]) == CHAT
    settings = {"columns": {"prompt": "prompt"}, "dataset_format": "alpaca"}
    found = next(iter(load(tmp_path / "alpaca.jsonl", **settings)[0]))
    assert found["prompt"][-1]["content"].startswith("an unrelated text")


def test_fields_of_a_csv_may_be_json_or_empty(tmp_path):
    """Tools and earlier turns as JSON text; an empty cell is no tool and no turn."""
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "history": history, "tools": tools}
        for i, (history, tools) in enumerate([("", ""), (json.dumps([["x", "y"]]), json.dumps([TOOL]))])
    ]
    path = write(tmp_path / "pairs.csv", rows)
    assert load(path)[0]["tools"][:] == ["", json.dumps([TOOL])]  # which tokenization takes for none
    found = load(path, dataset_format="alpaca")[0]
    assert found["prompt"][:] == [[user("q0")], [user("x"), assistant("y"), user("q1")]]
    assert found["tools"][0] is None and json.loads(found["tools"][1])[0]["function"] == TOOL


@pytest.mark.parametrize("row_format", ["chat", "alpaca"])
def test_text_pairs_become_conversations(tmp_path, row_format):
    found = load(write(tmp_path / "pairs.csv", TEXT), dataset_format=row_format)[0]
    assert found[0]["prompt"] == [user(TEXT[0]["prompt"])]
    assert found[0]["chosen"] == [assistant(TEXT[0]["chosen"])]


@pytest.mark.parametrize("streaming", [False, True])
def test_chat_reads_what_columns_name_and_the_system_message(tmp_path, streaming):
    """It leaves other columns alone, which Alpaca rows would add to the question."""
    rows = [{"question": "q", "input": "more", "persona": "s", "best": "a", "worst": "b"}, {"question": ""}]
    path = write(tmp_path / "pairs.jsonl", rows)
    columns = {"prompt": "question", "system": "persona", "chosen": "best", "rejected": "worst"}
    kept, empty = load(path, streaming=streaming, columns=columns, dataset_format="chat")[0]
    assert kept["prompt"] == [{"role": "system", "content": "s"}, user("q")]
    assert (kept["chosen"], kept["rejected"]) == ([assistant("a")], [assistant("b")])
    assert empty["prompt"] is None  # which tokenization counts
    messages = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    [same] = load(write(tmp_path / "same.jsonl", [messages]), dataset_format="chat")[0]
    assert same == messages
    ranked = write(tmp_path / "ranked.jsonl", [{"prompt": "q", "responses": ["a", "b"], "scores": [1, 0]}])
    assert load(ranked, dataset_format="chat")[0][0]["responses"] == [[assistant("a")], [assistant("b")]]
    with pytest.raises(SimPOError, match="chat rows need the column 'prompt'"):
        load(path, streaming=streaming, columns={"chosen": "best", "rejected": "worst"}, dataset_format="chat")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("place", ["prompt", "conversations"])
def test_answers_may_be_single_messages(tmp_path, place, suffix, streaming):
    rows = [{place: row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]} for row in CHAT]
    train, _ = load(write(tmp_path / f"pairs{suffix}", rows), streaming=streaming)
    assert list(train) == CHAT


@pytest.mark.parametrize("place", ["prompt", "conversations"])
def test_answers_may_be_single_messages_with_other_keys(tmp_path, place):
    rows = [{place: row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]} for row in CHAT]
    rows[1]["chosen"] = {**rows[1]["chosen"], "reasoning_content": "x"}
    train = load(write(tmp_path / "pairs.jsonl", rows))[0]
    assert [row["chosen"] for row in train] == [[row["chosen"]] for row in rows]
    assert [row["prompt"] for row in train] == [row[place] for row in rows]


# The settings that an example of the documentation needs.
EXAMPLE_SETTINGS = {
    "hh_rlhf": {"row_format": "hh_rlhf", "columns": None},
    "question": {"row_format": "alpaca", "columns": {"prompt": "question"}},
}


def test_rows_of_the_documentation_are_read():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert len(examples) == 9
    ranked = [row for row in examples if "responses" in row]
    [found], dropped = tokens(to_pairs(Dataset.from_list(ranked), None, None, "set"))
    assert [toy_tokenizer().decode(ids[:-1]) for ids in found["response_ids"]] == ["5", "6"]
    for row in [row for row in examples if row not in ranked]:
        kind = "hh_rlhf" if "Human:" in row["chosen"] else "question" if "question" in row else None
        settings = EXAMPLE_SETTINGS.get(str(kind), {"row_format": None, "columns": None})
        [found], dropped = tokens(to_pairs(Dataset.from_list([row]), name="set", **settings))
        assert dropped == {}
        answers = [toy_tokenizer().decode(found[side][:-1]) for side in ("chosen_ids", "rejected_ids")]
        assert answers == ["5", "6"]


# --- ShareGPT and Alpaca ----------------------------------------------------------------------------------------------

TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}


def test_roles_calls_and_tools_of_sharegpt(tmp_path):
    call = {"name": "add", "arguments": {"a": 1}}
    row = {
        "conversations": [
            {"from": "human", "value": "1 and 2?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "3"},
        ],
        "chosen": {"from": "gpt", "value": "3"},
        "rejected": {"from": "function_call", "value": json.dumps([call, {**call, "arguments": '{"b": 2}'}])},
        "system": "Use tools.",
        "tools": json.dumps([TOOL]),
    }
    [found] = load(write(tmp_path / "pairs.jsonl", [row]))[0].to_list()
    first, second = ({"type": "function", "function": {"name": "add", "arguments": a}} for a in ({"a": 1}, {"b": 2}))
    assert found["prompt"] == [
        {"role": "system", "content": "Use tools."},
        user("1 and 2?"),
        {"role": "assistant", "content": "", "tool_calls": [first]},
        {"role": "tool", "content": "3"},
    ]
    assert found["chosen"] == [assistant("3")]
    assert found["rejected"] == [{"role": "assistant", "content": "", "tool_calls": [first, second]}]
    assert json.loads(found["tools"]) == [{"type": "function", "function": TOOL}]


def test_system_message_of_a_conversation_comes_before_the_column():
    row = {**sharegpt(CHAT[0]), "system": "column"}
    row["conversations"] = [{"from": "system", "value": "message"}, *row["conversations"]]
    prompt = to_pairs(Dataset.from_list([row]), None, None, "set")[0]["prompt"]
    assert [message["content"] for message in prompt if message["role"] == "system"] == ["message"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"conversations": None}, "missing_field"),
        ({"chosen": None}, "missing_field"),
        ({"conversations": []}, "no_prompt"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "prompt_end"),
        ({"conversations": [{"from": "stranger", "value": "q"}]}, "bad_message"),
        ({"chosen": {"from": "gpt", "value": None}}, "bad_message"),
        ({"chosen": {"from": "function_call", "value": "no JSON"}}, "bad_message"),
        ({"chosen": {"from": "human", "value": "a"}}, "answer_messages"),
        ({"tools": "no JSON"}, "template_arguments"),
        ({"tools": "[1]"}, "template_arguments"),
        ({"tools": "5"}, "template_arguments"),
    ],
)
def test_bad_sharegpt_rows_are_dropped_by_reason(tmp_path, change, reason):
    rows = [{"tools": "", **sharegpt(row)} for row in CHAT]
    rows[2] |= change
    kept, dropped = tokens(load(write(tmp_path / "pairs.jsonl", rows))[0])
    assert dropped == {reason: 1}
    assert [row["row"] for row in kept] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"instruction": None, "input": ""}, "missing_field"),
        ({"rejected": None}, "missing_field"),
        ({"history": [["only one"]]}, "bad_message"),
        ({"chosen": "  "}, "empty_answer"),
    ],
)
def test_bad_alpaca_rows_are_dropped_by_reason(tmp_path, change, reason):
    rows = [alpaca(row) for row in CHAT]
    rows[2] |= change
    assert tokens(load(write(tmp_path / "pairs.jsonl", rows))[0])[1] == {reason: 1}


def test_instruction_and_input_are_joined_by_a_line_break():
    row = {"instruction": "Add.", "input": "1, 2", "output": ["3", "4"], "system": "Count."}
    found = to_pairs(Dataset.from_list([row]), None, None, "set")[0]
    assert found["prompt"] == [{"role": "system", "content": "Count."}, user("Add.\n1, 2")]
    assert (found["chosen"], found["rejected"]) == ([assistant("3")], [assistant("4")])


# --- HH-RLHF ----------------------------------------------------------------------------------------------------------


def test_dialogues_are_split_into_turns():
    opening = "\n\nHuman: Hi\n\nthere: Human \n\nAssistant: Hello\n\nHuman: 1?\n\nAssistant:"
    rows = Dataset.from_list([{"chosen": f"{opening} one\n\ntwo\n", "rejected": f"{opening} three"}])
    rows = Dataset.from_list([*rows, {side: text.lstrip() for side, text in rows[0].items()}])
    found, without_line_breaks = to_pairs(rows, None, "hh_rlhf", "set").to_list()
    assert (
        found
        == without_line_breaks
        == {
            "prompt": [user("Hi\n\nthere: Human"), assistant("Hello"), user("1?")],
            "chosen": [assistant("one\n\ntwo")],
            "rejected": [assistant("three")],
        }
    )


@pytest.mark.parametrize(
    "chosen, rejected, reason",
    [
        (None, "\n\nHuman: a\n\nAssistant: b", "missing_field"),
        ("no turns", "\n\nHuman: a\n\nAssistant: b", "no_prompt"),
        ("Text first.\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", "no_prompt"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "identical_answers"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "empty_answer"),
        ("\n\nHuman: a\n\nHuman: b", "\n\nHuman: a\n\nAssistant: b", "answer_messages"),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: e",
            "answer_messages",
        ),
    ],
)
def test_bad_dialogues_are_dropped_by_reason(tmp_path, chosen, rejected, reason):
    rows = [hh_rlhf(row) for row in CHAT] + [{"chosen": chosen, "rejected": rejected}]
    train, _ = load(write(tmp_path / "pairs.jsonl", rows), dataset_format="hh_rlhf")
    kept, dropped = tokens(train)
    assert (len(kept), dropped) == (COUNT, {reason: 1})


# --- Places -----------------------------------------------------------------------------------------------------------


def places(row, **columns):
    rows = Dataset.from_list([row], on_mixed_types="use_json")
    return to_pairs(rows, columns, None, "set")[0]


def test_column_with_a_dot_in_its_name_comes_before_a_place():
    row = {"a.b": "column", "a": {"b": "place", "c": "other"}, "a.d": {"e": "deep"}, "chosen": "x", "rejected": "y"}
    assert places(row, prompt="a.b")["prompt"] == "column"
    assert places(row, prompt="a.c")["prompt"] == "other"
    assert places(row, prompt="a.d.e")["prompt"] == "deep"


def test_every_field_may_be_named(tmp_path):
    row = {
        "q": [user("a")],
        "w": [[assistant("b")], [assistant("c")]],
        "meta": {"t": [{"name": "f"}], "k": {"enable_thinking": False}, "score": {"gap": 0.5}},
    }
    columns = {"prompt": "q", "chosen": "w.0", "rejected": "w.1", "tools": "meta.t"}
    columns |= {"chat_template_kwargs": "meta.k", "margin": "meta.score.gap"}
    expected = {"prompt": row["q"], "chosen": row["w"][0], "rejected": row["w"][1], "tools": row["meta"]["t"]}
    expected |= {"chat_template_kwargs": row["meta"]["k"], "margin": 0.5}
    for suffix in (".jsonl", ".parquet"):
        assert load(write(tmp_path / f"pairs{suffix}", [row]), columns=columns)[0].to_list() == [expected]


def test_place_that_some_rows_lack_is_a_missing_field():
    rows = Dataset.from_list([{"chosen": "a b", "rejected": "a c", "q": [["x"], []][i % 2]} for i in range(4)])
    found = to_pairs(rows, {"prompt": "q.0"}, None, "set")
    assert found["prompt"][:] == ["x", None, "x", None]


def test_places_inside_objects_of_any_keys():
    features = Features({"chosen": Value("string"), "rejected": Value("string"), "meta": Json()})
    rows = [
        {"chosen": "a", "rejected": "b", "meta": {"q": "5", "m": 1}},
        {"chosen": "a", "rejected": "b", "meta": None},
    ]
    dataset = Dataset.from_list(rows, features=features)
    found = to_pairs(dataset, {"prompt": "meta.q", "margin": "meta.m"}, None, "set")
    assert found["prompt"][:] == ["5", None]  # text, though it reads as a number
    assert found["margin"][0] == 1.0
    with pytest.raises(SimPOError, match="from 'meta.x', but the first 2 rows have no 'x'; there is 'm', 'q'"):
        to_pairs(dataset, {"prompt": "meta.x"}, None, "set")


@pytest.mark.parametrize(
    "path, found",
    [
        ("anwser.text", "there is no column 'anwser'; there is 'answer', 'rejected'. Did you mean answer?"),
        ("answer.txt", "'answer' has no 'txt'; there is 'text', 'list'. Did you mean text?"),
        ("answer.text.0", "'answer.text' has no '0'; there is nothing to name"),
        ("answer.list.best", "'answer.list' has no 'best'; there is '0', '1', '...'"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_missing_places_name_what_is_there(tmp_path, path, found, streaming):
    rows = [{"answer": {"text": "a", "list": ["b"]}, "rejected": "c"}]
    with pytest.raises(SimPOError, match=f"takes 'chosen' from '{path}', but {found}"):
        load(write(tmp_path / "pairs.jsonl", rows), columns={"chosen": path}, streaming=streaming)


def test_second_reading_is_taken_from_the_cache(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [sharegpt(row) for row in CHAT])
    first, second = (load(path)[0] for _ in range(2))
    assert first._fingerprint == second._fingerprint
    assert first.cache_files and first.cache_files == second.cache_files
