"""More than two answers to a prompt: the pairs made of them, what is left out, and where they are read from."""

import json
import math

import pytest
from datasets import Dataset

from models import two_by_two
from pair_files import load, write
from ranked_rows import LENGTHS, ranked, said, tokenize
from runs import make_trainer
from simpo_trainer.data import load as preferences
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.ranking import ranked_pairs
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_stream
from toy import CHATML, assistant, toy_tokenizer, user

# ---- Which pairs ----


@pytest.mark.parametrize(
    ("values", "every", "best_worst", "adjacent"),
    [
        ([3, 1, 2], "02 01 21", "01", "02 21"),
        ([2, 1, 2, 0], "01 21 03 23 13", "03 23", "01 21 13"),
        ([1, 1, 0, 0], "02 03 12 13", "02 03 12 13", "02 03 12 13"),
        ([0.5, -1], "01", "01", "01"),
        ([1, 1, 1], "", "", ""),
    ],
)
def test_pairs_of_ranked_answers(values, every, best_worst, adjacent):
    for choice, expected in (("all", every), ("best_worst", best_worst), ("adjacent", adjacent)):
        found = [f"{chosen}{rejected}" for chosen, rejected in ranked_pairs(dict(enumerate(values)), choice)]
        assert found == expected.split()


@pytest.mark.parametrize(
    ("choice", "pairs", "answers"), [("all", "bc ba ca", 3), ("best_worst", "ba", 2), ("adjacent", "bc ca", 3)]
)
def test_only_answers_in_a_pair_are_kept(choice, pairs, answers):
    [row] = tokenize([ranked(1, 3, 2)], pairs=choice)[0]
    assert said(row, toy_tokenizer()) == pairs.split()
    assert len(row["response_ids"]) == answers
    assert set(row) == {"row", "prompt_ids", "response_ids", "chosen", "rejected"}


def test_ranks_are_scores_the_other_way_round():
    row = ranked(4.0, 9.5, 4.0, 7.0)
    by_rank = {**row, "ranks": [3, 1, 3, 2]}
    del by_rank["scores"]
    expected = tokenize([row])[0].to_list()
    assert tokenize([by_rank])[0].to_list() == expected
    assert tokenize([{**row, "scores": ["4", "9.5", "4.0", "7"]}])[0].to_list() == expected
    assert tokenize([by_rank], margin_scale=0.5)[0]["margin"][:] == [[0.5, 1.0, 1.0, 0.5, 0.5]]


def test_margins_grow_with_the_difference_of_scores():
    [row] = tokenize([ranked(1, 3, 2.5)], margin_scale=0.2)[0]
    assert said(row, toy_tokenizer()) == ["bc", "ba", "ca"]
    assert row["margin"] == pytest.approx([0.1, 0.4, 0.3])
    assert "margin" not in tokenize([ranked(1, 3, 2.5)])[0].column_names


# ---- What is left out ----


def test_answers_that_cannot_be_used_are_left_out_and_counted():
    rows = [
        ranked(1, 3, 2),
        ranked(1, None, 2),
        ranked(1, math.nan, "n/a", 4),
        ranked(4, 3, 2, texts=["so", "_", "no"]),
        ranked(4, 3, 2, texts=["so", "x<|im_end|>y", "no"]),
    ]
    rows.append({**ranked(4, 3, 2), "responses": [" so", "  ", " no"]})
    tokenized, report = tokenize(rows)
    assert [said(row, toy_tokenizer()) for row in tokenized][:3] == [["bc", "ba", "ca"], ["ca"], ["da"]]
    assert [len(row["response_ids"]) for row in tokenized] == [3, 2, 2, 2, 2, 2]
    found = {reason: (left.count, left.first_row) for reason, left in report.left_out.items()}
    assert found == {"bad_score": (3, 1), "missing_field": (1, 3), "end_token_inside": (1, 4), "empty_answer": (1, 5)}
    assert report.summary().startswith("train: 6 of 6 prompts, 8 pairs of their answers; the longest has ")
    assert "  left out 3 answers (bad_score, first row 1): an answer's score (or rank) is missing" in report.summary()


def test_messages_that_are_no_answer_are_left_out():
    """Beside answers that are messages, a prompt of text is what the user says."""
    answers = [[assistant("so")], assistant("no"), [user("no")], [assistant(None)], [assistant("may be")], "text"]
    row = {"prompt": [user("Hi")], "responses": answers, "scores": [6, 5, 4, 3, 2, 1]}
    tokenized, report = tokenize([row])
    assert said(tokenized[0], toy_tokenizer()) == ["sono", "somay be", "nomay be"]
    reasons = {reason: left.count for reason, left in report.left_out.items()}
    assert reasons == {"answer_messages": 1, "bad_message": 1, "wrong_type": 1}
    spoken = {"prompt": "Hi", "responses": answers[:5], "scores": row["scores"][:5]}
    assert tokenize([spoken])[0].to_list() == tokenized.to_list()


def test_answers_that_call_a_tool():
    """Where a struct gives each message the keys of all, those that it has not are left out."""
    template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ message.tool_calls }}")
    tokenizer = toy_tokenizer(template)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    prompt, answers = [user("Hi")], [[call], [assistant("no")]]
    row = {"prompt": prompt, "responses": answers, "scores": [2.0, 1.0]}
    pair = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    expected = tokenize(Dataset.from_list([pair]), tokenizer)[0].remove_columns("row").to_list()
    assert two_by_two(tokenize(Dataset.from_list([row]), tokenizer)[0].to_list()) == expected


def test_a_template_that_refuses_one_answer():
    refusing = "{% for m in messages %}{{ raise_exception('bad') if m.content == 'bad' }}{% endfor %}" + CHATML
    row = {
        "prompt": [user("Hi")],
        "responses": [[assistant(text)] for text in ("so", "bad", "no")],
        "scores": [1, 2, 3],
    }
    tokenized, report = tokenize([row], toy_tokenizer(refusing))
    assert said(tokenized[0], toy_tokenizer()) == ["noso"]
    assert report.left_out["template_error"].count == 1


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (ranked(1, 1, 1), "no_pair", ""),
        (ranked(1, None, None), "no_pair", "answer 1: bad_score, answer 2: bad_score"),
        (ranked(1, 2, texts=["so", "so"]), "no_pair", ""),
        (ranked(1, 2, texts="__"), "missing_field", ""),
        (ranked(None, None), "bad_score", ""),
        ({**ranked(1, 2), "scores": [1, 2, 3]}, "score_count", "2 responses, 3 scores"),
        ({**ranked(1, 2), "scores": None}, "missing_field", ""),
        ({**ranked(1, 2), "responses": None}, "missing_field", ""),
        ({**ranked(1, 2), "prompt": None}, "missing_field", ""),
        ({**ranked(1, 2), "responses": "text"}, "wrong_type", "responses: str, scores: list"),
        ({**ranked(1, 2), "prompt": [user("Hi")]}, "wrong_type", "prompt: list, responses: str"),
        (ranked(1, 2, texts=["z" * 300, "a"]), "overlong", ""),
    ],
)
def test_rows_that_make_no_pair(row, reason, detail):
    tokenized, report = tokenize([row, ranked(1, 2)], overlong="drop")
    assert tokenized["row"][:] == [1]
    assert list(report.dropped) == [reason] and detail in report.dropped[reason].detail
    assert report.left_out == {}


def test_answers_that_are_the_same_make_no_pair_with_each_other():
    [row] = tokenize([ranked(3, 2, 1, texts=["so", "so", "no"])])[0]
    assert said(row, toy_tokenizer()) == ["sono", "sono"]
    cut = ranked(3, 2, 1, prompt="abc", texts=["x" * 20, "x" * 30, "y" * 20])
    [row], report = tokenize([cut], max_length=12, max_prompt_length=6)
    assert (row["chosen"], row["rejected"]) == ([0, 1], [2, 2]) and report.truncated_answers == 3
    assert {len(ids) for ids in row["response_ids"]} == {8}  # the room behind the prompt
    same = ranked(3, 2, prompt="abc", texts=["x" * 20, "x" * 30])
    _, report = tokenize([same, cut], max_length=12, max_prompt_length=6)
    assert list(report.dropped) == ["identical_after_truncation"]


def test_only_answers_in_a_pair_decide_on_the_length():
    row = ranked(3, 2, 1, texts=["so", "z" * 300, "no"])
    rows = [row, ranked(2, 1)]
    assert tokenize(rows, pairs="best_worst", overlong="drop")[0]["row"][:] == [0, 1]
    assert tokenize(rows, overlong="drop")[0]["row"][:] == [1]


# ---- Columns ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chosen": "a"},
            "train: there is 'responses' beside 'chosen'; a row holds either ranked answers or a pair. Remove",
        ),
        ({"ranks": [1, 2]}, r"'scores' \(higher is better\) beside 'ranks' .*need one of them. Remove or rename"),
        ({"margin": 1.0}, "a column 'margin' beside 'responses'; .* Set margin_scale instead, and remove or rename"),
        ({"scores": ...}, "column 'scores' missing; .*'scores' .higher is better. or 'ranks' .1 is the best"),
        ({"scores": ..., "score": [1, 2]}, "column 'scores' missing; .*in a recipe, columns: {scores: score}"),
        ({"prompt": ...}, "column 'prompt' missing; .*Ranked answers need 'prompt', 'responses' and"),
    ],
)
def test_columns_that_do_not_go_together(tmp_path, change, message):
    row = {key: value for key, value in (ranked(1, 2) | change).items() if value is not ...}
    with pytest.raises(SimPOError, match=message):
        tokenize([row])
    with pytest.raises(SimPOError, match=message.replace("train: ", "")):
        load(write(tmp_path / "ranked.jsonl", [row]))
    with pytest.raises(SimPOError, match=message):
        tokenize_stream(Dataset.from_list([row]).to_iterable_dataset(), toy_tokenizer(), RowSettings(**LENGTHS))


def test_scores_beside_a_pair_are_another_column():
    row = {"prompt": "p", "chosen": " a", "rejected": " b", "scores": [2.0, 1.0]}
    assert tokenize([row])[0].column_names == ["row", "prompt_ids", "chosen_ids", "rejected_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_ids": [[3, 2], []]}, "answer 1 in response_ids of row 1 is empty; it needs"),
        ({"response_ids": []}, "response_ids of row 1 is empty"),
        ({"chosen": [0, 1]}, "row 1 has 2 entries in chosen and 1 in rejected; each pair"),
        ({"chosen": [], "rejected": []}, "row 1 has 0 entries in chosen and 0 in rejected"),
        (
            {"rejected": [2]},
            "row 1 has the pair of answers 0 and 2; it has 2 answers, and a pair is two different indices",
        ),
        ({"rejected": [-1]}, "row 1 has the pair of answers 0 and -1"),
        ({"rejected": [0]}, "row 1 has the pair of answers 0 and 0"),
        (
            {"margin": [0.1, 0.2]},
            r"the margin of row 1 is \[0.1, 0.2\]; a ranked row needs a list with one number for each",
        ),
        ({"margin": [-0.1]}, "the margin of row 1 is -0.1; it must be a finite number"),
        ({"prompt_ids": [1] * 3000}, "row 1 has 3002 tokens and max_length is 2048"),
    ],
)
def test_token_rows_that_cannot_be(tmp_path, change, message):
    good = {"prompt_ids": [1], "response_ids": [[3, 2], [4, 2]], "chosen": [0], "rejected": [1]}
    with pytest.raises(SimPOError, match=message):
        make_trainer(tmp_path, [{**good, **({"margin": [1.0]} if "margin" in change else {})}, {**good, **change}])


# ---- Sources ----

ULTRAFEEDBACK = [
    {
        "source": "evol_instruct",
        "instruction": f"What is {i}?",
        "models": ["m1", "m2", "m3"],
        "completions": [
            {"model": "m1", "response": "A guess.", "overall_score": 4.0, "annotations": {"help": "x"}},
            {"model": "m2", "response": f"It is {i}.", "overall_score": 8.5, "annotations": {"help": "y"}},
            {"model": "m3", "response": "Well.", "overall_score": None if i == 1 else 6.0, "annotations": None},
        ],
    }
    for i in range(4)
]
COLUMNS = {"prompt": "instruction", "responses": "completions.response", "scores": "completions.overall_score"}


def as_words(rows):
    """The same with scores as text, and keys that not all completions have."""
    rows = json.loads(json.dumps(rows))
    for row in rows:
        for number, completion in enumerate(row["completions"]):
            completion["overall_score"] = str(completion["overall_score"] or "N/A")
            completion[f"k{number}"] = number
        row["completions"][0]["k1"] = "text"
    return rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("written", [list, as_words])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_ultrafeedback(tmp_path, streaming, written, suffix, monkeypatch):
    monkeypatch.setattr(preferences, "_shuffled_stream", lambda stream, *args: stream)  # rows are compared in order
    if suffix == ".parquet" and written is as_words:
        pytest.skip("Parquet has no such columns")
    path = write(tmp_path / f"rows{suffix}", written(ULTRAFEEDBACK))
    config = {"dataset_name": path, "columns": COLUMNS, "streaming": streaming}

    def said_in(rows):
        tokenized, report = tokenize(Dataset.from_list(list(rows), features=rows.features))
        assert report.left_out["bad_score"].count == 1
        tokenizer = toy_tokenizer()
        prompts = [tokenizer.decode(row["prompt_ids"]) for row in tokenized]
        return prompts, [said(row, tokenizer) for row in tokenized]

    text, _ = load_preferences(DataConfig(**config))
    pairs = ["It is {}.Well.", "It is {}.A guess.", "Well.A guess."]
    expected = [[pair.format(i) for pair in (pairs if i != 1 else pairs[1:2])] for i in range(4)]
    assert said_in(text) == ([f"<s>What is {i}?" for i in range(4)], expected)
    chat, _ = load_preferences(DataConfig(**config, dataset_format="alpaca"))
    assert set(chat.column_names) == {"prompt", "responses", "scores"}
    prompts = [f"<|im_start|>user\nWhat is {i}?<|im_end|>\n<|im_start|>assistant\n" for i in range(4)]
    assert said_in(chat) == (prompts, expected)


def test_places_inside_lists_that_are_not_there(tmp_path):
    path = write(tmp_path / "rows.jsonl", ULTRAFEEDBACK)
    with pytest.raises(
        SimPOError, match="'completions' has no 'respons'; there is .*'response'.* Did you mean response?"
    ):
        load(path, columns={**COLUMNS, "responses": "completions.respons"})
    path = write(tmp_path / "mixed.jsonl", as_words(ULTRAFEEDBACK))
    with pytest.raises(SimPOError, match="rows have no 'score'; there is .*'overall_score'"):
        load(path, columns={**COLUMNS, "scores": "completions.score"})


SHAREGPT = {
    "conversations": [{"from": "human", "value": "What is 2 + 3?"}],
    "responses": [{"from": "gpt", "value": text} for text in ("5", "6", "7")],
}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What is 2 + 3?", "responses": ["5", "6", "7"]},
        SHAREGPT,
        {**SHAREGPT, "responses": [assistant(text) for text in ("5", "6", "7")]},
        {"prompt": [user("What is 2 + 3?")], "responses": [assistant(text) for text in ("5", "6", "7")]},
    ],
    ids=["alpaca", "sharegpt", "sharegpt-roles", "messages"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_formats_of_ranked_answers(tmp_path, row, streaming):
    """Recognised, or as they are; a null answer stays null."""
    rows = [{**row, "scores": [3, 2, 1], "system": "Be brief."}, {**row, "ranks": None, "scores": [1, 2, 3]}]
    rows[1]["responses"] = [*row["responses"][:2], None]
    del rows[1]["ranks"]
    if "prompt" in row:
        rows = [{key: value for key, value in row.items() if key != "system"} for row in rows]
    train, _ = load(write(tmp_path / "rows.jsonl", rows), streaming=streaming)
    tokenized, report = tokenize(Dataset.from_list(list(train), features=train.features))
    assert sorted(said(row, toy_tokenizer()) for row in tokenized) == [["56", "57", "67"], ["65"]]
    assert report.left_out["missing_field"].count == 1


def test_a_column_that_is_named_comes_before_its_rival(tmp_path):
    row = {**ULTRAFEEDBACK[0], "chosen": "x", "rejected": "y", "ranks": [1, 2, 3]}
    path = write(tmp_path / "rows.jsonl", [row])
    assert load(path, columns=COLUMNS)[0].column_names == ["prompt", "responses", "scores"]
    assert load(path, columns={"prompt": "instruction"})[0].column_names == ["prompt", "chosen", "rejected"]


@pytest.mark.slow
def test_mixtures_of_ranked_sets(tmp_path):
    files = {
        "whole": [{**ranked(1, 2), "scores": [1, 2]}, ranked(3, 4)],
        "fractions": [ranked(1.5, 2), ranked("3", "4")],
        "pairs": [{"prompt": "p", "chosen": " a", "rejected": " b"}],
        "ranks": [{"prompt": "p", "responses": [" a", " b"], "ranks": [1, 2]}],
        "chat": [{"prompt": [user("p")], "responses": [[assistant("a")], [assistant("b")]], "scores": [1, 2]}],
        "asked": [{"prompt": "p", "responses": [[assistant("a")], [assistant("b")]], "scores": [1, 2]}],
        "single": [{"prompt": [user("p")], "responses": [assistant("a"), assistant("b")], "scores": [1, 2]}],
    }
    for row in files["fractions"][1:]:
        row["scores"] = [3.0, 4.0]
    paths = {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}

    def mixed(*names):
        return load_preferences(DataConfig(dataset_mixer={paths[name]: 1 for name in names}))[0]

    assert len(tokenize(mixed("whole", "fractions"))[0]) == 4
    assert len(tokenize(mixed("chat", "single"))[0]) == 2
    for other, message in (("pairs", "has pairs"), ("ranks", "has ranked answers with ranks")):
        with pytest.raises(SimPOError, match=rf"has ranked answers with scores and .*{message}; .*one kind. Convert"):
            mixed("whole", other)
    with pytest.raises(SimPOError, match="Column 'prompt' is text in .* and a list of messages in .*must agree"):
        mixed("whole", "chat")
    with pytest.raises(SimPOError, match="Column 'responses' is a list of texts in .* and a list of messages in .*"):
        mixed("whole", "asked")
