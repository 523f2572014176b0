"""The better of two answers by a sign, a number, a name or two scores: each value has its direction."""

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import Dataset, IterableDataset

from pair_files import load, write
from simpo_trainer.data import load as preferences
from simpo_trainer.data.formats import to_pairs
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.settings import data_problems
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import assistant, toy_tokenizer, user

SETTINGS = RowSettings(max_length=512, max_prompt_length=256)
FIRST, SECOND, TIE = ("one", "two"), ("two", "one"), "tie"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(preferences, "_shuffled_stream", lambda stream, *args: stream)  # rows are compared in order


def outcomes(rows):
    """What is trained of each row: (chosen, rejected), or the reason for which it is dropped; and the prompts."""
    tokenizer = toy_tokenizer()
    if isinstance(rows, Dataset):
        tokenized, report = tokenize_preferences(rows, tokenizer, SETTINGS)
        found = {row["row"]: row for row in tokenized}
        dropped = [reason for reason, rest in report.dropped.items() for _ in range(rest.count)]
        assert len(set(dropped)) <= 1  # so that the order does not matter
        told = [found.get(row) or {"reason": dropped[0]} for row in range(len(rows))]
    else:
        told = list(tokenize_stream(rows, tokenizer, SETTINGS))
    sides = ("chosen_ids", "rejected_ids")
    return [row.get("reason") or tuple(tokenizer.decode(row[side][:-1]) for side in sides) for row in told]


def texts(prompt, first, second):
    return lambda **verdict: {prompt: "What?\n", first: "one", second: "two", **verdict}


def helpsteer(value):
    return {
        "domain": "general",
        "language": "en",
        "context": [user("What?")],
        "response1": "one",
        "response2": "two",
        "overall_preference": value,
        "individual_preference": [{"score": value, "reasoning": "x", "feedback1": "x", "feedback2": "y"}],
    }


def safer(value):
    return {"prompt": "What?", "response_0": "one", "response_1": "two", "better_response_id": value, "is_safe": True}


def arena(value):
    sides = {f"conversation_{side}": [user("What?"), assistant(said)] for side, said in (("a", "one"), ("b", "two"))}
    return {"model_a": "x", "model_b": "y", "winner": value, **sides, "turn": 1}


def arena_55k(value):
    flags = dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), value, strict=True))
    return {"prompt": '["What?"]', "response_a": '["one"]', "response_b": '["two"]', **flags}


def shp(value):
    sides = {"human_ref_A": "one", "human_ref_B": "two"}
    return {"post_id": "x", "history": "What?", **sides, "labels": value, "score_A": 9, "score_B": 3}


SIGNED = {-3: FIRST, -2: FIRST, -1: FIRST, 0: TIE, 1: SECOND, 2: SECOND, 3: SECOND}
NAMED = {"model_a": FIRST, "model_b": SECOND, "tie": TIE, "tie (bothbad)": TIE}
FLAGS = {(1, 0, 0): FIRST, (0, 1, 0): SECOND, (0, 0, 1): TIE}
# Published sets as they are, without a word in the recipe: how a row is written, and what each value teaches.
PUBLISHED = {
    "helpsteer3": (helpsteer, SIGNED),
    "safe_rlhf": (safer, {0: FIRST, 1: SECOND}),
    "arena": (arena, NAMED),
    "arena_newer": (arena, {"model_a": FIRST, "model_b": SECOND, "both_bad": TIE}),
    "arena_55k": (arena_55k, FLAGS),
    "shp": (shp, {1: FIRST, 0: SECOND}),
}
PAIR = texts("prompt", "a", "b")
PLACES = {"better": "v", "answers": {0: "a", 1: "b"}}
# Other ways to write verdicts, and `columns` for them.
SPELLED = {
    "index": ({0: FIRST, 1: SECOND, "1": SECOND}, {0: "a", 1: "b"}),
    "first_is_better": ({1: FIRST, 0: SECOND}, {1: "a", 0: "b"}),
    "number": ({1: FIRST, 2: SECOND}, {1: "a", 2: "b"}),
    "floats": ({0.0: FIRST, 1.0: SECOND}, {"0": "a", "1": "b"}),
    "truth": ({True: FIRST, False: SECOND}, {"true": "a", "no": "b"}),
    "letters": ({"A": FIRST, "B": SECOND, " b ": SECOND, "tie": TIE}, {"A": "a", "B": "b"}),
    "names": ({"chosen_a": FIRST, "chosen_b": SECOND, "Tie": TIE}, {"chosen_a": "a", "chosen_b": "b"}),
    "signs": ({-0.5: FIRST, 0: TIE, 2.5: SECOND}, {"negative": "a", "positive": "b"}),
    "signs_turned": ({-1: SECOND, 1: FIRST}, {"negative": "b", "positive": "a"}),
    "ones": ({-1: FIRST, 0: TIE, 1: SECOND}, {-1: "a", 1: "b", 0: None}),
    "own_tie": ({"x": FIRST, "y": SECOND, "neither": TIE}, {"x": "a", "y": "b", "neither": None}),
    "scale": ({1: FIRST, 2: FIRST, 3: TIE, 4: SECOND, 5: SECOND}, {1: "a", 2: "a", 3: None, 4: "b", 5: "b"}),
}


KINDS = [(name, kind) for name in PUBLISHED for kind in ("set", "stream")]
KINDS += [(name, "csv") for name in ("safe_rlhf", "arena_55k", "shp")]


@pytest.mark.parametrize("name, kind", KINDS)
def test_values_of_published_sets_have_their_direction(tmp_path, name, kind):
    written, expected = PUBLISHED[name]
    rows = [written(value) for value in expected]
    path = write(tmp_path / ("rows.csv" if kind == "csv" else "rows.jsonl"), rows)
    assert outcomes(load(path, streaming=kind == "stream")[0]) == list(expected.values())


@pytest.mark.parametrize("kind", ["set", "stream", "csv"])
@pytest.mark.parametrize("name", SPELLED)
def test_values_have_the_direction_that_is_written(tmp_path, name, kind):
    expected, answers = SPELLED[name]
    values = [str(value) for value in expected] if name == "index" else list(expected)
    path = write(tmp_path / ("rows.csv" if kind == "csv" else "rows.jsonl"), [PAIR(v=value) for value in values])
    train, _ = load(path, streaming=kind == "stream", columns={"better": "v", "answers": answers})
    assert outcomes(train) == list(expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_written_as_text(tmp_path, streaming):
    rows = [{key: json.dumps(said) if "conv" in key else said for key, said in arena(value).items()} for value in NAMED]
    train, _ = load(write(tmp_path / "arena.csv", rows), streaming=streaming)
    assert outcomes(train) == list(NAMED.values())
    keys = ("context", "response1", "response2", "overall_preference")
    rows = [{key: helpsteer(value)[key] for key in keys} for value in SIGNED]
    path = write(tmp_path / "helpsteer.csv", [row | {"context": json.dumps(row["context"])} for row in rows])
    with pytest.raises(SimPOError, match="dataset_format: sharegpt and `columns: {prompt: context}`"):
        load(path, streaming=streaming)
    train, _ = load(path, streaming=streaming, dataset_format="sharegpt", columns={"prompt": "context"})
    assert outcomes(train) == list(SIGNED.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_scores_of_both_answers(tmp_path, streaming):
    rows = [PAIR(meta={"s": score}, t=2) for score in (3, 2, 1)]
    settings = {"columns": {"answers": {"meta.s": "a", "t": "b"}}, "streaming": streaming}
    assert outcomes(load(write(tmp_path / "a.jsonl", rows), **settings)[0]) == [FIRST, TIE, SECOND]


@pytest.mark.parametrize("streaming", [False, True])
def test_answers_inside_lists_and_as_single_messages(tmp_path, streaming):
    said = [{"text": assistant("one"), "id": 1}, {"text": assistant("two") | {"name": "x"}, "id": 2}]
    rows = [{"info": {"ask": [user("What?")]}, "said": said, "choice": choice} for choice in (1, 0)]
    answers = {0: "said.0.text", 1: "said.1.text"}
    columns = {"prompt": "info.ask", "better": "choice", "answers": answers}
    assert outcomes(load(write(tmp_path / "a.jsonl", rows), columns=columns, streaming=streaming)[0]) == [SECOND, FIRST]


@pytest.mark.parametrize("streaming", [False, True])
def test_swapped_answers_are_the_same_pairs(tmp_path, streaming):
    """The direction comes from the value, not from the order in which answers are named."""
    path = write(tmp_path / "rows.jsonl", [PAIR(v=value) for value in (0, 1)])
    for answers in ({0: "a", 1: "b"}, {1: "b", 0: "a"}):
        train, _ = load(path, columns={"better": "v", "answers": answers}, streaming=streaming)
        assert outcomes(train) == [FIRST, SECOND]


# --- Rows that teach nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_verdicts_are_dropped_and_unknown_ones_named(tmp_path, streaming):
    path = write(tmp_path / "a.jsonl", [PAIR(v=value) for value in (0, None, 1)])
    assert outcomes(load(path, columns=PLACES, streaming=streaming)[0]) == [FIRST, "missing_field", SECOND]
    path = write(tmp_path / "b.jsonl", [PAIR(v=value) for value in (0, 1, 2)])
    with pytest.raises(SimPOError, match="row 2 has 2 in 'v', which is not in `answers`; there is 0, 1. Correct"):
        list(load(path, columns=PLACES, streaming=streaming)[0])


def test_ties_are_counted_and_are_no_mistake():
    rows = [PAIR(v=value) for value in ("A", "tie", "tie", "tie")]
    columns = {"better": "v", "answers": {"A": "a", "B": "b"}}
    report = tokenize_preferences(to_pairs(Dataset.from_list(rows), columns, None, "set"), toy_tokenizer(), SETTINGS)[1]
    assert (report.rows_kept, report.dropped["tie"].count, report.dropped["tie"].detail) == (1, 3, "told by tie")
    assert "dropped 3 (tie, first row 1): neither answer is the better one" in report.summary()
    with pytest.raises(SimPOError, match="3 of 3 pairs cannot be trained on"):
        tokenize_preferences(to_pairs(Dataset.from_list(rows[1:]), columns, None, "set"), toy_tokenizer(), SETTINGS)


@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_that_part_early_are_dropped(tmp_path, streaming):
    opening = [user("Hi"), assistant("Hello"), user("What?")]
    sides = {"conversation_a": [*opening, assistant("one")], "conversation_b": [*opening, assistant("two")]}
    apart = {"conversation_b": [user("Hi"), assistant("Ho"), user("What?"), assistant("two")]}
    rows = [
        {"winner": winner, **sides, **more} for winner, more in (("model_a", {}), ("model_b", {}), ("model_b", apart))
    ]
    train, _ = load(write(tmp_path / "a.jsonl", rows), streaming=streaming)
    assert outcomes(train) == [FIRST, SECOND, "answer_messages"]


@pytest.mark.parametrize("streaming", [False, True])
def test_turns_as_lists_of_text(tmp_path, streaming):
    row = arena_55k((1, 0, 0)) | {"prompt": '["Hi", "What?"]', "response_a": '["Hello", "one"]'}
    ends = [{"response_b": '["Hello", "two"]'}, {"response_b": '["Ho", "two"]'}]
    path = write(tmp_path / "a.jsonl", [row | end for end in ends])
    train, _ = load(path, streaming=streaming)
    assert next(iter(train))["prompt"] == [user("Hi"), assistant("Hello"), user("What?")]
    assert outcomes(train) == [FIRST, "answer_messages"]
    rows = [row | ends[0], row | ends[0], row | {"response_b": "not a list"}]
    assert outcomes(load(write(tmp_path / "b.jsonl", rows), streaming=streaming)[0])[2] == "unread_messages"


# --- Margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "margin, factor", [(None, None), ("overall_preference", 1), ("0.25 * overall_preference", 0.25)]
)
def test_strength_is_a_margin_where_it_is_asked_for(tmp_path, margin, factor, streaming):
    path = write(tmp_path / "rows.jsonl", list(map(helpsteer, SIGNED)))
    train, _ = load(path, streaming=streaming, columns=margin and {"margin": margin})
    margins = [row.get("margin") for row in train]
    assert margins == [None if factor is None else factor * abs(value) for value in SIGNED]
    assert outcomes(train) == list(SIGNED.values())


def test_margin_from_elsewhere_keeps_its_sign():
    rows = Dataset.from_list([PAIR(v=1, gap="3"), PAIR(v=0, gap="-1")])
    pairs = to_pairs(rows, PLACES | {"margin": "2 * gap"}, None, "set")
    assert pairs["margin"][:] == [6.0, -2.0]
    with pytest.raises(SimPOError, match="the margin of row 1 is -2.0"):
        tokenize_preferences(pairs, toy_tokenizer(), SETTINGS)
    with pytest.raises(SimPOError, match="row 0 has 'x' in 'gap', which `columns` takes the margin from"):
        to_pairs(Dataset.from_list([PAIR(v=1, gap="x")]), PLACES | {"margin": "2 * gap"}, None, "set")
    plain = Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "gap": 1}])
    with pytest.raises(SimPOError, match="a factor is read only beside `answers`"):
        to_pairs(plain, {"margin": "2 * gap"}, None, "set")


# --- With formats, mixtures and evaluation ----------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["safe_rlhf", "shp"])
def test_texts_become_conversations_by_alpaca(tmp_path, name, streaming):
    written, expected = PUBLISHED[name]
    path = write(tmp_path / "rows.jsonl", list(map(written, expected)))
    train, _ = load(path, dataset_format="alpaca", streaming=streaming)
    assert [row["prompt"] for row in train] == [[user("What?")]] * 2
    assert outcomes(train) == list(expected.values())


def test_turns_of_sharegpt_beside_texts():
    rows = [helpsteer(value) | {"context": [{"from": "human", "value": "What?"}]} for value in SIGNED]
    assert outcomes(to_pairs(Dataset.from_list(rows), None, None, "set")) == list(SIGNED.values())


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_mixture_in_which_one_source_has_verdicts(tmp_path, streaming):
    whole = [user("What?")]
    pairs = [{"prompt": whole, "chosen": [assistant("one")], "rejected": [assistant("two")]}]
    mixer = {
        write(tmp_path / "a.jsonl", pairs): 1,
        write(tmp_path / "b.jsonl", [helpsteer(2), helpsteer(-1), helpsteer(0)]): 1,
        write(tmp_path / "c.jsonl", [arena("model_b"), arena("tie")]): 1,
    }
    expected = [FIRST, SECOND, FIRST, TIE, SECOND, TIE]
    assert outcomes(load_preferences(DataConfig(dataset_mixer=mixer, streaming=streaming))[0]) == expected
    columns = {"prompt": "ask", "better": "v", "answers": {0: "a", 1: "b"}}
    rows = [{"ask": whole, "a": [assistant("one")], "b": [assistant("two")], "v": value} for value in (1, 0)]
    mixer[write(tmp_path / "d.jsonl", rows)] = 1
    config = DataConfig(dataset_mixer=mixer, columns=columns, streaming=streaming)
    assert outcomes(load_preferences(config)[0]) == [*expected, SECOND, FIRST]


def test_evaluation_split_is_read_alike(tmp_path):
    for split, values in (("train", (0, 1)), ("test", (1, 0))):
        write(tmp_path / f"{split}.jsonl", [PAIR(v=value) for value in values])
    train, test = load(tmp_path, columns=PLACES)
    assert (outcomes(train), outcomes(test)) == ([FIRST, SECOND], [SECOND, FIRST])
    train, test = load(tmp_path / "train.jsonl", columns=PLACES, eval_dataset_name=str(tmp_path / "test.jsonl"))
    assert (outcomes(train), outcomes(test)) == ([FIRST, SECOND], [SECOND, FIRST])


def test_columns_of_the_source_give_way():
    rows = [{"chosen": "x", "rejected": "y", "scores": [1, 2], "responses": ["one", "two"], "prompt": "q\n", "v": 1}]
    columns = {"better": "v", "answers": {0: "responses.0", 1: "responses.1"}}
    assert outcomes(to_pairs(Dataset.from_list(rows), columns, None, "set")) == [SECOND]


# --- Refusals ---------------------------------------------------------------------------------------------------------

UNCERTAIN = {
    "zero_or_one": ("label", (0, 1), ["{0: response_a, 1: response_b}", "{1: response_a, 0: response_b}"]),
    "truth": ("preferred", (True, False), ["{0: response_a, 1: response_b}", "{1: response_a, 0: response_b}"]),
    "signs": (
        "preference",
        (-2, 1),
        ["{negative: response_a, positive: response_b}", "{negative: response_b, positive: response_a}"],
    ),
    "one_or_two": ("choice", (1, 2), ["{1: response_a, 2: response_b}"]),
    "letters": ("winner", ("A", "B"), ["{A: response_a, B: response_b}"]),
    "names": ("label", ("chosen_a", "chosen_b", "tie"), ["{chosen_a: response_a, chosen_b: response_b}"]),
    "unknown_names": ("label", ("left", "right"), ["{VALUE: response_a, OTHER: response_b}"]),
    "unknown_column": ("opinion", (0, 1), ["{VALUE: response_a, OTHER: response_b}, better: COLUMN"]),
}


@pytest.mark.parametrize("kind", ["set", "stream", "handed over", "handed over stream"])
@pytest.mark.parametrize("name", UNCERTAIN)
def test_direction_is_not_guessed(tmp_path, name, kind):
    column, values, ways = UNCERTAIN[name]
    rows = [{"question": "q", "response_a": "one", "response_b": "two", column: value} for value in values]
    with pytest.raises(
        SimPOError, match="two answers, 'response_a' and 'response_b', and no column 'chosen'"
    ) as caught:
        if kind == "handed over":
            tokenize_preferences(Dataset.from_list(rows), toy_tokenizer(), SETTINGS)
        elif kind == "handed over stream":
            stream = IterableDataset.from_generator(lambda: iter(rows))
            tokenize_stream(stream, toy_tokenizer(), SETTINGS)
        else:
            load(write(tmp_path / "rows.jsonl", rows), streaming=kind == "stream")
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  columns")]
    assert len(lines) == len(ways)
    for line, way in zip(lines, ways, strict=True):
        assert line.startswith(f"columns: {{prompt: question, answers: {way}")
    assert ("to_pairs(rows, columns, None, 'train')" in str(caught.value)) == kind.startswith("handed")


def test_lines_of_a_refusal_can_be_copied(tmp_path):
    rows = [{"question": "q\n", "answer_1": "one", "answer_2": "two", "label": value} for value in (0, 1)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SimPOError) as caught:
        load(path)
    found = []
    for line in [line.strip() for line in str(caught.value).splitlines()[1:]]:
        (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: m\noutput_dir: o\ndataset_name: {path}\n{line}\n")
        columns = load_recipe(tmp_path / "recipe.yaml").data.columns
        found.append(outcomes(load(path, columns=columns)[0]))
    assert found == [[FIRST, SECOND], [SECOND, FIRST]]


def test_two_verdicts_are_to_be_chosen_from(tmp_path):
    path = write(tmp_path / "rows.jsonl", [safer(0) | {"safer_response_id": 1}, safer(1) | {"safer_response_id": 1}])
    with pytest.raises(SimPOError, match="(?s)better: better_response_id}.*better: safer_response_id}"):
        load(path)
    columns = {"answers": {0: "response_0", 1: "response_1"}, "better": "safer_response_id"}
    assert outcomes(load(path, columns=columns)[0]) == [SECOND, SECOND]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_that_a_program_hands_over_name_the_way(name):
    written, expected = PUBLISHED[name]
    rows = Dataset.from_list([written(value) for value in expected])
    with pytest.raises(SimPOError, match="(?s)columns: {.*answers: {.*formats.to_pairs"):
        tokenize_preferences(rows, toy_tokenizer(), SETTINGS)


@pytest.mark.parametrize(
    "columns, problem",
    [
        ({"better": "v"}, "better is set without answers"),
        ({"answers": "a"}, "answers is 'a'; it must map each value"),
        ({"answers": {0: "a", 1: "a"}, "better": "v"}, "it must name two different answers"),
        ({"answers": {0: "a", 1: "b", 2: "c"}, "better": "v"}, "it must name two different answers"),
        ({"answers": {1: "a", "true": "b"}, "better": "v"}, "has a value twice"),
        ({"answers": {0: "a", 1: "b"}}, "without better, the column that has these values"),
        ({"answers": {"negative": "a", "positive": "b"}}, "without better, the column"),
        ({"answers": {"s": "a", "t": "b", "u": None}}, "without better, the column"),
        ({"answers": {0: "a", 1: "b"}, "better": "v", "chosen": "a"}, "answers stand beside chosen"),
        ({"answers": {0: ["a"], 1: "b"}, "better": "v"}, "what they map to is a column or null"),
        ({"answers": {None: "a", 1: "b"}, "better": "v"}, "its keys are values"),
        ({"answers": {0: "a", 1: "b"}, "better": 5}, "better is 5; it must be the place of the field, as text"),
        ({"prompt": {0: "a"}}, "prompt is {0: 'a'}; it must be the place of the field, as text"),
        ({"anwsers": {0: "a"}}, "Did you mean answers?"),
    ],
)
def test_problems_are_found_before_anything_is_read(columns, problem):
    [found] = data_problems({"dataset_name": "x.jsonl", "columns": columns})
    assert problem in found


def test_lines_of_the_documentation_are_without_problems():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    lines = re.findall(r"`(columns: {answers.*?})`", text)
    lines += re.findall(r"```yaml\n(columns:\n[^`]*answers: [^`]*)```", text)
    assert len(lines) == 7
    for line in lines:
        assert data_problems({"dataset_name": "x.jsonl", **yaml.safe_load(line)}) == []


def test_place_that_does_not_exist_is_named():
    with pytest.raises(SimPOError, match="takes 'better' from 'w', but there is no column 'w'"):
        to_pairs(Dataset.from_list([PAIR(v=1)]), PLACES | {"better": "w"}, None, "set")
    with pytest.raises(SimPOError, match="takes 'answers' from 'c', but there is no column 'c'"):
        to_pairs(Dataset.from_list([PAIR(v=1)]), {"better": "v", "answers": {0: "a", 1: "c"}}, None, "set")
