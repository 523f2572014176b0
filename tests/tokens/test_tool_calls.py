"""Tools and tool calls: rows keep their own keys, and what a chat template does not write is dropped or said."""

from importlib.resources import files
from itertools import islice

import pytest
from datasets import Dataset, Features, Json, List

from logs import warnings
from simpo_trainer.batches.stream import StreamedPairs
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import assistant, toy_tokenizer, user

LIMITS = {"max_length": 9000, "max_prompt_length": 8000, "overlong": "truncate"}
QWEN3 = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()


def tool(name, parameter):
    properties = {parameter: {"type": "string"}}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls, content=""):
    return {**assistant(content), "tool_calls": list(calls)}


def rows(count=2, **more):
    """Each row has its own tool with its own parameter, and calls it."""
    return [
        {
            "prompt": [user(f"Call {i}.")],
            "chosen": [calling(call(f"f{i}", **{f"p{i}": "x"}))],
            "rejected": [assistant("No.")],
            "tools": [tool(f"f{i}", f"p{i}")],
            **more,
        }
        for i in range(count)
    ]


def texts(dataset, tokenizer, streamed):
    tokens = (
        tokenize_stream(dataset, tokenizer, RowSettings(**LIMITS))
        if streamed
        else tokenize_preferences(dataset, tokenizer, RowSettings(**LIMITS))[0]
    )
    return [(tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["chosen_ids"])) for row in tokens]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", ["struct", "json", "unknown"])
def test_rows_have_no_keys_of_other_rows(kind, streamed):
    dataset = Dataset.from_list(rows())
    assert dataset[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"p0": "x", "p1": None}, "the premise"
    if kind == "json":
        objects = List(Json())
        types = Features({"prompt": objects, "chosen": objects, "rejected": objects, "tools": objects})
        dataset = Dataset.from_list(rows(), features=types)
    if streamed:
        dataset = dataset.to_iterable_dataset()
        if kind == "unknown":
            dataset = dataset.map(lambda row: row)
            assert dataset.features is None, "the premise"
    first, second = texts(dataset, toy_tokenizer(QWEN3), streamed)
    assert (
        '{"name": "f0", "arguments": {"p0": "x"}}' in first[1]
        and '{"name": "f1", "arguments": {"p1": "x"}}' in second[1]
    )
    assert '"properties": {"p1": {"type": "string"}}}}' in second[0] and "p0" not in second[0] + second[1]


def test_null_that_an_answer_has_is_kept_in_a_json_column():
    objects = List(Json())
    given = [{**row, "chosen": [calling(call("f", a=None))]} for row in rows(1)]
    types = Features({"prompt": objects, "chosen": objects, "rejected": objects, "tools": objects})
    assert (
        '"arguments": {"a": null}' in texts(Dataset.from_list(given, features=types), toy_tokenizer(QWEN3), False)[0][1]
    )


# --- What a template does not write -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, key",
    [
        (calling(call("f0", p0="x"), content="Let me look."), "tool_calls"),
        (calling(call("f0", p0="x")), "tool_calls"),
        (calling(call("f0", p0="x"), content=None), "tool_calls"),
        ({**assistant("So."), "reasoning_content": "why"}, "reasoning_content"),
        ({**assistant("So."), "thinking": "why"}, "thinking"),
    ],
)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_part_of_an_answer_that_the_template_does_not_write(answer, key, side):
    pairs = [{"prompt": [user("Hi")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}] * 2
    pairs = [pairs[0], {**pairs[0], side: [answer]}]
    tokenized, report = tokenize_preferences(Dataset.from_list(pairs), toy_tokenizer(), RowSettings(**LIMITS))
    assert tokenized["row"][:] == [0]
    assert report.dropped["template_content"].detail == f"it does not write the answer's {key!r}"


def test_parts_that_the_template_writes_and_keys_that_say_nothing():
    answer = {**calling(call("f0", p0="x"), content="Look."), "reasoning_content": "why", "id": "a7"}
    pairs = [{"prompt": [user("Hi")], "chosen": [answer], "rejected": [assistant("No.")]}]
    text = texts(Dataset.from_list(pairs), toy_tokenizer(QWEN3), False)[0][1]
    assert "<think>\nwhy\n</think>\n\nLook." in text and '"arguments": {"p0": "x"}' in text


EARLIER = [user("Hi"), calling(call("f0", p0="x")), {"role": "tool", "content": "3"}]


@pytest.mark.parametrize(
    "given, part",
    [
        ({"tools": [tool("f0", "p0")]}, "the tools"),
        ({"prompt": EARLIER}, "the tool calls of the prompt"),
        ({"prompt": EARLIER, "tools": [tool("f0", "p0")]}, "the tools and the tool calls of the prompt"),
    ],
)
def test_part_of_a_prompt_that_the_template_does_not_write_is_said_once(given, part, caplog):
    plain = {"prompt": [user("Hi")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")], "tools": None}
    dataset = Dataset.from_list([plain, *[{**plain, **given}] * 2])
    tokenizer = toy_tokenizer()
    tokenized, report = tokenize_preferences(dataset, tokenizer, RowSettings(**LIMITS))
    assert len(tokenized) == 3 and (report.ignored[part].count, report.ignored[part].first_row) == (2, 1)
    assert report.lines()[-1] == f"  kept 2 (first row 1) without {part}"
    said = f"train: the chat template does not write {part} of 2 of 3 pairs (first row 1); these pairs are trained "
    assert [warning[: len(said)] for warning in warnings(caplog)] == [said]
    caplog.clear()
    tokenize_preferences(dataset, toy_tokenizer(QWEN3), RowSettings(**LIMITS))
    assert not warnings(caplog)


def test_stream_says_it_once(caplog):
    stream = Dataset.from_list([{**row, "chosen": [assistant("Yes.")]} for row in rows(4)]).to_iterable_dataset()
    tokens = tokenize_stream(stream, toy_tokenizer(), RowSettings(**LIMITS))
    pairs = StreamedPairs(tokens, batch_size=2, max_length=9000)
    assert len(list(islice(pairs, 2))) == 2
    said = warnings(caplog)
    assert len(said) == 1 and said[0].startswith(
        "train: the chat template does not write the tools of 1 of the first 1 pairs (first row 0)"
    )
