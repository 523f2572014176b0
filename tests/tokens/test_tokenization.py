"""Rows to token ids: what is scored, what is cut, what is dropped, and that the work is done once."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, load_dataset

from logs import warnings
from models import tiny_model
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens import tokenization
from simpo_trainer.tokens.pair_tokenizer import PairTokenizer, fit_to_length
from simpo_trainer.tokens.sets import token_set
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.shown import render_row
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import (
    CHATML,
    ToySlowTokenizer,
    assistant,
    toy_pairs,
    toy_tokenizer,
    toy_tokenizer_without_template,
    toy_word_tokenizer,
    user,
)

BOS_CHATML = "{{ bos_token }}" + CHATML
END = "<|im_end|>"


def tokenize(rows, tokenizer, *, num_proc=None, name="train", **settings):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    settings = RowSettings(**{"max_length": 4096, "max_prompt_length": 2048, **settings})
    return tokenize_preferences(dataset, tokenizer, settings, num_proc=num_proc, name=name)


def pair(prompt, chosen, rejected="something else"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def only(row, tokenizer, **options):
    """The token row of a single pair."""
    return tokenize([row], tokenizer, **options)[0][0]


# --- What is scored ---------------------------------------------------------------------------------------------------

CHAT_TOKENIZERS = {
    "bytes": toy_tokenizer,
    "bytes with BOS": lambda: toy_tokenizer(BOS_CHATML),
    "no BOS": lambda: toy_tokenizer(bos=None),
    "words": lambda: toy_word_tokenizer(CHATML.replace("<|im_end|>", "</s>")),
    "words with BOS": lambda: toy_word_tokenizer(BOS_CHATML.replace("<|im_end|>", "</s>")),
    "slow": lambda: ToySlowTokenizer(chat_template=CHATML),
}


@pytest.mark.parametrize("name", CHAT_TOKENIZERS)
def test_conversations_have_the_ids_of_inference(name):
    """Prompt ids are what `apply_chat_template` gives at inference, answers the rest of the conversation's ids."""
    tokenizer = CHAT_TOKENIZERS[name]()
    rows = toy_pairs(7, conversational=True)
    rows[3]["prompt"] = [user("Hello!"), assistant("Hi, "), *rows[3]["prompt"]]
    tokenized, _ = tokenize(rows, tokenizer)
    for row, tokens in zip(rows, tokenized, strict=True):
        prompt_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert tokens["prompt_ids"] == prompt_ids
        for side in ("chosen", "rejected"):
            full = tokenizer.apply_chat_template(row["prompt"] + row[side])["input_ids"]
            answer = tokens[f"{side}_ids"]
            assert full[: len(prompt_ids) + len(answer)] == prompt_ids + answer
            assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1
            # Behind the end token stands only the template's line break, one token here but for "▁\n".
            assert len(full) - len(prompt_ids) - len(answer) <= 2


@pytest.mark.parametrize(
    "tokenizer", [toy_tokenizer(), toy_tokenizer(bos=None), toy_word_tokenizer(), ToySlowTokenizer()], ids=str
)
def test_texts_have_the_ids_of_inference(tokenizer):
    rows = toy_pairs(7)
    tokenized, _ = tokenize(rows, tokenizer)
    for row, tokens in zip(rows, tokenized, strict=True):
        assert tokens["prompt_ids"] == tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            full = tokenizer(row["prompt"] + row[side])["input_ids"]
            assert tokens["prompt_ids"] + tokens[f"{side}_ids"] == [*full, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "tokenizer",
    [toy_tokenizer(), toy_word_tokenizer(), toy_word_tokenizer(old=True)],
    ids=["bytes", "words", "old words"],
)
def test_tokens_that_merge_over_the_boundary(tokenizer):
    """The prompt's last space would merge with the answer's first letter: the prompt keeps its ids, nothing is lost."""
    row = pair("Is it ", "so", "true")
    whole = tokenizer("Is it so")["input_ids"]
    prompt_ids = tokenizer("Is it ")["input_ids"]
    assert whole[: len(prompt_ids)] != prompt_ids, "the premise: tokens merge"
    tokens = only(row, tokenizer)
    assert tokens["prompt_ids"] == prompt_ids
    for side, text in (("chosen", "so"), ("rejected", "true")):
        assert tokenizer.decode(tokens["prompt_ids"] + tokens[f"{side}_ids"][:-1], skip_special_tokens=True) == (
            "Is it " + text
        )


def test_letter_that_the_tokenizer_lacks_behind_a_boundary():
    tokenizer = toy_word_tokenizer(old=True)
    tokens = only(pair("Is it ", "sö", "so"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokens["chosen_ids"]) == ["s", "<unk>", "</s>"]


def test_tokens_that_merge_behind_the_generation_header():
    """The header's line break and the answer's would be one token: the pair is kept, with the prompt of inference."""
    tokenizer = toy_tokenizer()
    tokens = only(pair([user("Hi")], [assistant("\nSo.")], [assistant("No.")]), tokenizer)
    assert tokens["prompt_ids"] == tokenizer.apply_chat_template([user("Hi")], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(tokens["chosen_ids"]) == f"\nSo.{END}"


def test_a_row_does_not_depend_on_its_neighbours():
    tokenizer = toy_tokenizer()
    rows = [pair(f"{'<|im_start|>' * (i % 2)}Say {i}", f" {i}!") for i in range(6)]
    together = tokenize(rows, tokenizer)[0].remove_columns("row").to_list()
    alone = [tokenize([row], tokenizer)[0].remove_columns("row").to_list()[0] for row in rows]
    assert together == alone


@pytest.mark.parametrize("conversational", [False, True])
def test_swapping_the_answers_swaps_their_ids(conversational):
    rows = toy_pairs(5, conversational=conversational)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    for tokens, other in zip(tokenize(rows, toy_tokenizer())[0], tokenize(swapped, toy_tokenizer())[0], strict=True):
        assert (tokens["chosen_ids"], tokens["rejected_ids"]) == (other["rejected_ids"], other["chosen_ids"])


def test_implicit_prompts_give_the_rows_of_explicit_ones():
    rows = toy_pairs(5, conversational=True)
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    strings = [{"prompt": "a title", **row} for row in implicit]
    expected = tokenize(rows, toy_tokenizer())[0].to_list()
    assert tokenize(implicit, toy_tokenizer())[0].to_list() == expected
    assert tokenize(strings, toy_tokenizer())[0].to_list() == expected


# --- Special tokens ---------------------------------------------------------------------------------------------------


def test_end_token_is_not_doubled():
    tokenizer = toy_tokenizer()
    tokens = only(pair("Say", f" so{END}", " no"), tokenizer)
    assert tokenizer.decode(tokens["chosen_ids"]) == f" so{END}"
    assert tokenizer.decode(tokens["rejected_ids"]) == f" no{END}"


def test_prompt_has_no_end_token_where_the_tokenizer_adds_one():
    tokenizer = toy_tokenizer(adds_eos=True)
    tokens = only(pair("Say", " so"), tokenizer)
    assert tokenizer("Say")["input_ids"] == [*tokens["prompt_ids"], tokenizer.eos_token_id], "the premise"
    assert tokens["chosen_ids"].count(tokenizer.eos_token_id) == 1


def test_template_without_end_token_gets_eos():
    tokenizer = toy_tokenizer(CHATML.replace(END, ""), eos="</s>")
    tokens = only(pair([user("Hi")], [assistant("So.")], [assistant("No.")]), tokenizer)
    assert tokenizer.decode(tokens["chosen_ids"]) == "So.\n</s>"


def test_tokenizer_without_eos_warns_once(caplog):
    tokenizer = toy_tokenizer_without_template(eos=None, special_tokens=())
    tokenized, _ = tokenize(toy_pairs(3), tokenizer)
    assert tokenizer.decode(tokenized[0]["chosen_ids"]) == " The sum is 0."
    assert warnings(caplog) == ["train: the tokenizer has no EOS token, so answers are trained without an end."]


@pytest.mark.parametrize("prompt", ["<s>Say", "Say", "<s><s>Say"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_at_most_one_bos_in_front_of_text(prompt, adds_bos):
    tokenizer = toy_tokenizer(adds_bos=adds_bos)
    tokens = only(pair(prompt, " so"), tokenizer)
    expected = "<s>Say" if adds_bos or prompt != "Say" else "Say"
    assert tokenizer.decode(tokens["prompt_ids"]) == expected


def test_template_that_writes_bos_and_tokenizer_that_adds_it_give_one():
    tokenizer = toy_tokenizer(BOS_CHATML, adds_bos=True)
    tokens = only(pair([user("Hi")], [assistant("So.")], [assistant("No.")]), tokenizer)
    assert tokens["prompt_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("adds_bos", [True, False])
def test_empty_prompt_is_bos(adds_bos):
    tokenizer = toy_tokenizer(adds_bos=adds_bos)
    assert only(pair("", "So."), tokenizer)["prompt_ids"] == [tokenizer.bos_token_id]
    rows = [{"chosen": "Is it? So.", "rejected": "Is it? No."}, {"chosen": "So.", "rejected": "No."}]
    assert tokenize(rows, tokenizer)[0][1]["prompt_ids"] == [tokenizer.bos_token_id]


def test_empty_prompt_without_bos_is_dropped():
    rows = [pair("", "So."), pair("Say", " so")]
    tokenized, report = tokenize(rows, toy_tokenizer(bos=None))
    assert tokenized["row"][:] == [1]
    assert report.dropped["no_prompt"].first_row == 0


def test_padding_token_plays_no_part():
    rows = toy_pairs(4, conversational=True)
    tokenizer = toy_tokenizer()
    expected = tokenize(rows, tokenizer)[0].to_list()
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenize(rows, tokenizer)[0].to_list() == expected


# --- Lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, chosen, rejected, limits, fitted",
    [
        # Fits: nothing is cut, though the prompt is longer than max_prompt_length.
        ([1, 2, 3, 4], [5, 6], [7], (6, 3), ([1, 2, 3, 4], [5, 6], [7])),
        # One too many: the prompt is cut to its end; that suffices.
        ([1, 2, 3, 4], [5, 6, 6], [7], (6, 3), ([2, 3, 4], [5, 6, 6], [7])),
        # It does not suffice: both answers are cut to the room behind the prompt.
        ([1, 2, 3, 4], [5, 6, 7, 8], [9], (6, 3), ([2, 3, 4], [5, 6, 7], [9])),
        # A prompt shorter than max_prompt_length leaves more room.
        ([1], [5, 6, 7, 8, 9, 9], [7, 8], (6, 3), ([1], [5, 6, 7, 8, 9], [7, 8])),
    ],
)
def test_fit_to_length(prompt, chosen, rejected, limits, fitted):
    assert fit_to_length(prompt, [chosen, rejected], *limits) == (fitted[0], [*fitted[1:]])


@pytest.mark.parametrize("kept_start, cut", [(0, [4, 5, 6]), (1, [1, 5, 6]), (2, [1, 2, 6]), (3, [1, 2, 3])])
def test_fit_to_length_keeps_both_ends(kept_start, cut):
    fitted = fit_to_length([1, 2, 3, 4, 5, 6], [[7, 7, 7], [8]], 6, 3, kept_start=kept_start)
    assert fitted == (cut, [[7, 7, 7], [8]])


@pytest.mark.parametrize("official", [False, True])
def test_fit_to_length_follows_the_rule(official):
    """Against the rule written out, for every combination of small lengths; the official code cuts BOS too."""
    for prompt_length in range(1, 7):
        for longer in range(1, 7):
            for max_length in range(2, 9):
                for max_prompt_length in range(1, max_length):
                    prompt, chosen = list(range(prompt_length)), list(range(longer))
                    got = fit_to_length(prompt, [chosen, [9]], max_length, max_prompt_length, official=official)
                    if len(prompt) + len(chosen) > max_length:
                        prompt = prompt[-max_prompt_length:]
                    if len(prompt) + len(chosen) > max_length:
                        chosen = chosen[: max_length - (max_prompt_length if official else len(prompt))]
                    assert got == (prompt, [chosen, [9]])
                    assert len(got[0]) + len(got[1][0]) <= max_length


def test_overlong_pairs_are_cut_and_counted(caplog):
    tokenizer = toy_tokenizer_without_template()
    rows = [
        pair("abc", "x" * 5, "y" * 5),  # 1 + 3 + 6: fits
        pair("a" * 20, "x" * 5, "y" * 5),  # the prompt is cut
        pair("a" * 20, "x" * 5, "y" * 6),  # the prompt is cut
        pair("abc", "x" * 5, "y" * 20),  # one answer is cut
        pair("abc", "x" * 5, "y" * 20),
        pair("abc", "x" * 20, "y" * 5),
        pair("a" * 20, "x" * 20, "y" * 20),  # all three are cut
        pair("abc", "x", "y"),  # fits
    ]
    tokenized, report = tokenize(rows, tokenizer, max_length=14, max_prompt_length=6)
    assert (report.truncated_prompts, report.truncated_answers, report.one_sided_ends) == (3, 5, 3)
    assert report.longest == 14 == max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in tokenized)
    uncut = [row["chosen_ids"][-1] == tokenizer.eos_token_id for row in tokenized]
    assert uncut == [True, True, True, True, True, False, False, True]
    prompts = [tokenizer.decode(row["prompt_ids"]) for row in tokenized]
    assert prompts == ["<s>abc", "<s>aaaaa", "<s>aaaaa", "<s>abc", "<s>abc", "<s>abc", "<s>aaaaa", "<s>abc"]
    assert "train: in 3 of 8 pairs only one answer was cut and lost its end token" in caplog.text
    assert "cut to length: 3 prompts, 5 answers" in report.summary()


def test_answers_get_the_room_that_a_short_prompt_leaves(caplog):
    tokenizer = toy_tokenizer_without_template()
    rows = [pair("a" * 15, "x" * 1009, "y" * 1009 + "z"), pair("abc", "x", "y")]  # BOS and EOS come on top
    for overlong, room in (("truncate", 1024 - 16), ("official", 1024 - 900)):
        tokenized, report = tokenize(rows, tokenizer, max_length=1024, max_prompt_length=900, overlong=overlong)
        assert [len(tokenized[0][ids]) for ids in ("prompt_ids", "chosen_ids", "rejected_ids")] == [16, room, room]
        assert (report.lost_tokens, report.needed_length) == (1010 + 1011 - 2 * room, 1027)
        line = (
            f"  cut answers lose their end, {report.lost_tokens} tokens in all; max_length: 1027 would keep every row"
        )
        assert line in report.summary()
    tokenized, report = tokenize(rows, tokenizer, max_length=1027, max_prompt_length=900)
    assert (report.truncated_answers, report.lost_tokens) == (0, 0)
    assert "lose their end" not in report.summary()
    assert tokenize(rows, tokenizer, max_length=1026, max_prompt_length=900)[1].truncated_answers == 1


@pytest.mark.parametrize("rule", ["truncate", "official"])
def test_the_limit_of_prompts_follows_from_max_length(rule):
    """Unset, it gives the same rows as the number that it stands for."""
    tokenizer = toy_tokenizer_without_template()
    rows = [pair("a" * length, "x" * 9, "y" * 12) for length in range(1, 40)]
    settings = RowSettings(max_length=32, overlong=rule)
    assert settings.max_prompt_length is None and settings.prompt_limit == 28
    found = tokenize(rows, tokenizer, max_length=32, max_prompt_length=None, overlong=rule)
    assert found[1].truncated_prompts > 0 and found[1].truncated_answers > 0
    given = tokenize(rows, tokenizer, max_length=32, max_prompt_length=28, overlong=rule)
    assert found[0].to_list() == given[0].to_list() and found[1] == given[1]
    assert found[0]._fingerprint == given[0]._fingerprint, "the same rows of the cache"


def test_generation_header_survives_the_cut():
    tokenizer = toy_tokenizer(BOS_CHATML)
    row = pair([user("word " * 50)], [assistant("So.")], [assistant("No.")])
    tokens = only(row, tokenizer, max_length=60, max_prompt_length=40)
    text = tokenizer.decode(tokens["prompt_ids"])
    assert len(tokens["prompt_ids"]) == 40
    assert text.startswith("<s>") and text.endswith(f"{END}\n<|im_start|>assistant\n")


def test_bos_stays_unless_one_token_is_left():
    tokenizer = toy_tokenizer_without_template()
    cut = [
        tokenizer.decode(only(pair("abcdef", "x"), tokenizer, max_length=n + 2, max_prompt_length=n)["prompt_ids"])
        for n in (1, 2, 3)
    ]
    assert cut == ["f", "<s>f", "<s>ef"]


def test_start_of_the_prompt_can_be_kept():
    tokenizer = toy_tokenizer_without_template()
    limits = {"max_length": 8, "max_prompt_length": 4}
    cut = only(pair("abcdef", "xyz"), tokenizer, truncation_mode="keep_start", **limits)
    assert tokenizer.decode(cut["prompt_ids"]) == "<s>abc"
    assert tokenizer.decode(only(pair("abcdef", "xyz"), tokenizer, **limits)["prompt_ids"]) == "<s>def"


@pytest.mark.parametrize(
    "tokenizer, header",
    [
        (toy_tokenizer(BOS_CHATML), "<|im_end|>\n<|im_start|>assistant\n"),
        (toy_tokenizer(bos=None), "<|im_end|>\n<|im_start|>assistant\n"),
        # Phi's way: without a header, the end of the text stands in its place.
        (
            toy_tokenizer(
                CHATML.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}"),
                special_tokens=("<|im_start|>", END, "<|endoftext|>"),
            ),
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        # Mistral's way: what the answer stands behind is written without being asked for.
        (
            toy_tokenizer(
                "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}"
                "{{ eos_token }}{% endif %}{% endfor %}"
            ),
            "[/INST]",
        ),
        (toy_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}", bos=None), ""),
    ],
    ids=["bos", "no bos", "end of text", "instruction", "no header"],
)
@pytest.mark.parametrize("room", [1, 30])
def test_generation_header_stays_behind_the_start_of_the_prompt(tokenizer, header, room):
    row = pair([user("word " * 50)], [assistant("So.")], [assistant("No.")])
    whole = only(row, tokenizer)["prompt_ids"]
    header_ids = tokenizer(header, add_special_tokens=False)["input_ids"]
    limit = len(header_ids) + room
    tokens = only(row, tokenizer, max_length=limit + 30, max_prompt_length=limit, truncation_mode="keep_start")
    assert tokens["prompt_ids"] == whole[:room] + header_ids


def test_prompt_shorter_than_its_header_is_the_end_of_it():
    row = pair([user("Hi")], [assistant("So.")], [assistant("No.")])
    limits = {"max_length": 20, "max_prompt_length": 3, "truncation_mode": "keep_start"}
    assert toy_tokenizer().decode(only(row, toy_tokenizer(), **limits)["prompt_ids"]) == "nt\n"


def test_overlong_pairs_can_be_dropped_or_refused():
    rows = [pair("abc", "x"), pair("abc", "x" * 50), pair("abc", "z")]
    limits = {"max_length": 30, "max_prompt_length": 20}
    tokenized, report = tokenize(rows, toy_tokenizer(), overlong="drop", **limits)
    assert tokenized["row"][:] == [0, 2]
    assert (report.dropped["overlong"].count, report.dropped["overlong"].first_row) == (1, 1)
    with pytest.raises(SimPOError, match=r"train: 1 of 3 pairs exceed max_length=30 \(first: row 1, 55 tokens\)"):
        tokenize(rows, toy_tokenizer(), overlong="error", **limits)
    limits["max_length"] = 55
    assert len(tokenize(rows, toy_tokenizer(), overlong="error", **limits)[0]) == 3


def test_answers_that_are_the_same_once_cut_are_dropped():
    rows = [pair("abc", "x" * 30 + "end", "x" * 30 + "stop"), pair("abc", "x", "y")]
    _, report = tokenize(rows, toy_tokenizer(), max_length=20, max_prompt_length=10)
    assert report.dropped["identical_after_truncation"].count == 1
    assert tokenize(rows, toy_tokenizer())[1].dropped == {}


# --- Rows left out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, reason",
    [
        (pair("p", None), "missing_field"),
        (pair("p", " \n "), "empty_answer"),
        (pair("p", "x", ""), "empty_answer"),
        (pair("p", "x", " \n "), "empty_answer"),
        (pair("p", END), "empty_answer"),
        (pair("p", "same", "same"), "identical_answers"),
        (pair("p", "same", f"same{END}"), "identical_answers"),
        (pair("p", f"so{END} and on"), "end_token_inside"),
    ],
)
def test_texts_that_teach_nothing_are_dropped(row, reason):
    good = toy_pairs(2)
    tokenized, report = tokenize([good[0], row, row, good[1]], toy_tokenizer())
    assert tokenized["row"][:] == [0, 3]
    assert {name: (d.count, d.first_row) for name, d in report.dropped.items()} == {reason: (2, 1)}
    assert (report.rows_read, report.rows_kept) == (4, 2)


@pytest.mark.parametrize(
    "row, reason",
    [
        (pair([user("p")], None, [assistant("b")]), "missing_field"),
        (pair([user("p")], [assistant(" ")], [assistant("b")]), "empty_answer"),
        (pair([user("p")], [assistant("a")], [assistant("a")]), "identical_answers"),
        (pair([user("p")], [user("a")], [assistant("b")]), "answer_messages"),
        (pair([assistant("p")], [assistant("a")], [assistant("b")]), "prompt_end"),
        (pair([], [assistant("a")], [assistant("b")]), "no_prompt"),
        (pair([user("p")], [assistant(f"a{END}")], [assistant("b")]), "end_token_inside"),
        (pair([user("p")], [assistant(f"a{END}b")], [assistant("b")]), "end_token_inside"),
    ],
)
def test_conversations_that_teach_nothing_are_dropped(row, reason):
    good = toy_pairs(2, conversational=True)
    tokenized, report = tokenize([good[0], row, good[1]], toy_tokenizer())
    assert tokenized["row"][:] == [0, 2]
    assert {name: (d.count, d.first_row) for name, d in report.dropped.items()} == {reason: (1, 1)}


def test_rows_of_both_kinds_in_one_set(tmp_path):
    """A JSON Lines file may mix texts, conversations and neither; each row is taken for what it is."""
    rows = [*toy_pairs(2), *toy_pairs(2, conversational=True), pair("p", 3), pair("p", "a", [assistant("b")])]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = toy_tokenizer()
    tokenized, report = tokenize(load(tmp_path / "mixed.jsonl"), tokenizer)
    assert tokenized["row"][:] == [0, 1, 2, 3]
    assert (report.dropped["wrong_type"].count, report.dropped["wrong_type"].detail) == (
        2,
        "prompt: str, chosen: int, rejected: str",
    )
    assert tokenizer.decode(tokenized[1]["prompt_ids"]).startswith("<s>What is 1")
    assert tokenizer.decode(tokenized[2]["prompt_ids"]).startswith("<|im_start|>user\nWhat is 0")


def test_too_many_dropped_rows_are_an_error():
    bad = pair("p", "same", "same")
    assert len(tokenize([*toy_pairs(2), bad, bad], toy_tokenizer())[0]) == 2
    with pytest.raises(
        SimPOError, match=r"3 of 5 pairs cannot be .*\n  2 \(identical_answers, first row 2\): .*Remove"
    ):
        tokenize([*toy_pairs(2), bad, bad, pair("p", "")], toy_tokenizer())
    with pytest.raises(SimPOError, match="eval: 1 of 1 pairs cannot be trained on"):
        tokenize([bad], toy_tokenizer(), name="eval")


# --- Chat templates that take not everything --------------------------------------------------------------------------

ALTERNATING = (
    "{% for m in messages %}{{ raise_exception('no system role here') if m.role == 'system' }}"
    "{{ raise_exception('roles must alternate') if (m.role == 'user') != (loop.index0 % 2 == 0) }}{% endfor %}" + CHATML
)
SYSTEM = {"role": "system", "content": "Be brief."}


def test_role_order_that_the_template_refuses():
    good = toy_pairs(3, conversational=True)
    twice = pair([user("Hi"), user("Ho")], [assistant("So.")], [assistant("No.")])
    tokenized, report = tokenize([*good, twice], toy_tokenizer(ALTERNATING))
    assert tokenized["row"][:] == [0, 1, 2]
    assert (report.dropped["template_error"].first_row, report.dropped["template_error"].detail) == (
        3,
        "roles must alternate",
    )
    with pytest.raises(
        SimPOError, match=r"refuses the conversation \(roles must alternate\).* user and assistant in turn"
    ):
        tokenize([twice], toy_tokenizer(ALTERNATING))


def test_system_messages_that_the_template_refuses():
    rows = [{**row, "prompt": [SYSTEM, *row["prompt"]]} for row in toy_pairs(2, conversational=True)]
    tokenizer = toy_tokenizer(ALTERNATING)
    with pytest.raises(SimPOError, match=r"\(no system role here\).* system_messages: merge .*system_messages: drop"):
        tokenize(rows, tokenizer)
    merged, _ = tokenize(rows, tokenizer, system_messages="merge")
    assert tokenizer.decode(merged[0]["prompt_ids"]).startswith("<|im_start|>user\nBe brief.\n\nWhat is 0")
    without, _ = tokenize(rows, tokenizer, system_messages="drop")
    assert without.to_list() == tokenize(toy_pairs(2, conversational=True), tokenizer)[0].to_list()


@pytest.mark.parametrize(
    "template, inserted",
    [
        (CHATML, True),
        (CHATML.replace("<|im_start|>", "<r>"), False),
        ("{# system #}" + CHATML.replace("<|im_start|>", "<r>"), True),
    ],
)
def test_empty_system_message_is_put_in_front(template, inserted):
    rows = toy_pairs(2, conversational=True)
    tokenizer = toy_tokenizer(template)
    tokenized, _ = tokenize(rows, tokenizer, auto_insert_empty_system_msg=True)
    for row, tokens in zip(rows, tokenized, strict=True):
        prompt = [{"role": "system", "content": ""}] * inserted + row["prompt"]
        assert tokens["prompt_ids"] == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    own = [{**row, "prompt": [SYSTEM, *row["prompt"]]} for row in rows]
    expected = tokenize(own, tokenizer)[0].to_list()
    assert tokenize(own, tokenizer, auto_insert_empty_system_msg=True)[0].to_list() == expected


def test_empty_system_message_that_the_template_refuses():
    with pytest.raises(SimPOError, match="no system role here.*Leave out auto_insert_empty_system_msg"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer(ALTERNATING), auto_insert_empty_system_msg=True)
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer_without_template(), auto_insert_empty_system_msg=True)


def test_second_rendering_is_said(caplog):
    tokenizer = toy_tokenizer(CHATML.replace("assistant\n{%", "assistant:\n{%"))
    rows = toy_pairs(3, conversational=True)
    tokenized, _ = tokenize(rows, tokenizer)
    for row, tokens in zip(rows, tokenized, strict=True):
        prompt_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert tokens["prompt_ids"] == prompt_ids
        assert tokenizer.decode(tokens["rejected_ids"]) == row["rejected"][0]["content"] + END
    assert warnings(caplog) == [
        "train: in 3 of 3 pairs the chat template does not write prompt + answer behind the prompt of inference (first "
        "row 0: prompt alone 'im_end|>\\n<|im_start|>assistant:\\n', with an answer "
        "'im_end|>\\n<|im_start|>assistant\\nThe sum is 0.<|im_end|>\\n'). There the answer's own text, and the "
        "token that ends it, are trained behind the generation header instead."
    ]
    caplog.clear()
    tokenize(rows, toy_tokenizer())
    assert not warnings(caplog)


def test_second_rendering_of_some_rows_only(caplog):
    """DeepSeek-R1's template cuts thinking off; rows whose answers hold none do not fit behind its header."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% else %}A:"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt "
        "%}A:<think>\n{% endif %}"
    )
    tokenizer, thinking = toy_tokenizer(template), "<think>\nwhy\n</think>\n\n"
    rows = [
        {**row, "chosen": [assistant(thinking + "So.")], "rejected": [assistant(thinking + "No.")]}
        for row in toy_pairs(2, conversational=True)
    ]
    tokenized, report = tokenize([toy_pairs(1, conversational=True)[0], *rows], tokenizer)
    assert tokenized["row"][:] == [1, 2] and report.dropped["template_prefix"].count == 1
    assert tokenizer.decode(tokenized[0]["prompt_ids"]).endswith("A:<think>\n")
    assert tokenizer.decode(tokenized[0]["chosen_ids"]) == f"why\n</think>\n\nSo.{END}"
    assert "train: in 2 of 2 pairs the chat template" in caplog.text and "(first row 1: " in caplog.text


def test_template_that_the_rows_break_is_explained():
    tokenizer = toy_tokenizer("{{ raise_exception('no second turn') if messages | length > 2 }}" + CHATML)
    with pytest.raises(SimPOError, match="The chat template fails"):
        tokenize(toy_pairs(2, conversational=True), tokenizer)
    tokenizer = toy_tokenizer("{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML)
    rows = [
        {**row, "prompt": [{"role": "system", "content": "s"}, *row["prompt"]]}
        for row in toy_pairs(2, conversational=True)
    ]
    with pytest.raises(SimPOError, match=r"2 \(template_error, first row 0\): the chat template refuses .*no system"):
        tokenize(rows, tokenizer)


def test_unusable_sets():
    with pytest.raises(SimPOError, match="train: the set has no rows"):
        tokenize(Dataset.from_dict({"chosen": [], "rejected": []}), toy_tokenizer())
    with pytest.raises(SimPOError, match="column 'rejected' missing"):
        tokenize([{"chosen": "a"}], toy_tokenizer())
    with pytest.raises(SimPOError, match="the tokenizer has no chat template"):
        tokenize(toy_pairs(2, conversational=True), toy_tokenizer_without_template())


def test_column_that_looks_like_the_prompt_is_pointed_out(caplog):
    rows = [{"question": "x", "chosen": f"The answer: {i}", "rejected": f"The answer: no {i}"} for i in range(3)]
    tokenize(rows, toy_tokenizer())
    assert "if column 'question' holds it, rename that to 'prompt'" in caplog.text


def test_texts_without_any_prompt_are_refused():
    """More than half of the rows without a prompt are a mistake, fewer are not; `prompt: ""` is meant so."""
    rows = [{"chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)]
    rows += [{"chosen": f"Q: yes {i}", "rejected": f"Q: no {i}"} for i in range(2)]
    settings = {"max_length": 512, "max_prompt_length": 256, "overlong": "truncate"}
    message = r"there is no column 'prompt', and in 3 of 5 rows .*`columns: {prompt: its name}`"
    with pytest.raises(SimPOError, match=message):
        tokenize(rows, toy_tokenizer())
    with pytest.raises(SimPOError, match=message):
        tokenize_stream(Dataset.from_list(rows).to_iterable_dataset(), toy_tokenizer(), RowSettings(**settings))
    assert len(tokenize(rows[1:], toy_tokenizer())[0]) == 4
    assert len(tokenize([{"prompt": "", **row} for row in rows], toy_tokenizer())[0]) == 5


def test_texts_trained_without_the_template_are_warned_of(caplog):
    tokenize(toy_pairs(2), toy_tokenizer_without_template())
    tokenize(toy_pairs(2, conversational=True), toy_tokenizer())
    assert "chat template" not in caplog.text
    tokenize(toy_pairs(2), toy_tokenizer())
    [warning] = warnings(caplog)
    assert "without the tokenizer's chat template" in warning and "`dataset_format: chat`" in warning


def test_rows_of_a_list_keep_their_keys():
    """Arguments of a tool call have no null keys from the calls of other rows."""
    calls = [{"type": "function", "function": {"name": "f", "arguments": {f"x{i}": "5"}}} for i in range(2)]
    rows = [
        {**row, "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
        for row, call in zip(toy_pairs(2, conversational=True), calls, strict=True)
    ]
    template = CHATML.replace("{{ message['content'] }}", "{{ message['content'] }}{{ message['tool_calls'] }}")
    assert template != CHATML
    args = SimPOConfig(output_dir="unused", max_length=1024, max_prompt_length=512, use_cpu=True, bf16=False)
    tokenizer = toy_tokenizer(template)
    found = token_set(rows, "train", tokenizer, args).rows
    for i, row in enumerate(found):
        assert f"'arguments': {{'x{i}': '5'}}" in tokenizer.decode(row["chosen_ids"])


# --- What comes out ---------------------------------------------------------------------------------------------------


def test_columns_and_margin_follow_the_rows():
    rows = [{**row, "score": 1, "margin": i} for i, row in enumerate(toy_pairs(4))]
    rows[1]["chosen"] = ""
    tokenized, _ = tokenize(rows, toy_tokenizer())
    assert tokenized.column_names == ["row", "prompt_ids", "chosen_ids", "rejected_ids", "margin"]
    assert list(zip(tokenized["row"], tokenized["margin"], strict=True)) == [(0, 0.0), (2, 2.0), (3, 3.0)]
    assert "margin" not in tokenize(toy_pairs(2), toy_tokenizer())[0].column_names
    rows[2]["margin"] = -1
    with pytest.raises(SimPOError, match="train: the margin of row 2 is -1"):
        tokenize(rows, toy_tokenizer())


def test_template_arguments_of_a_row_reach_its_template():
    tokenizer = toy_tokenizer("{{ mood }}{{ tools[0].name if tools }}" + CHATML)
    rows = toy_pairs(2, conversational=True)
    rows[0] |= {"chat_template_kwargs": {"mood": "!"}, "tools": None}
    rows[1] |= {"chat_template_kwargs": None, "tools": '[{"name": "add"}]'}
    tokenized, _ = tokenize(rows, tokenizer)
    starts = [tokenizer.decode(row["prompt_ids"]).split("<|im_start|>")[0] for row in tokenized]
    assert starts == ["!", "add"]


def test_report_is_plain_values():
    _, report = tokenize([*toy_pairs(2), pair("p", "")], toy_tokenizer())
    assert json.loads(json.dumps(dataclasses.asdict(report)))["dropped"]["empty_answer"]["first_row"] == 2
    assert report.lines()[0].startswith("train: 2 of 3 pairs; the longest has ")


def test_rendered_pair_shows_what_is_scored():
    tokenizer = toy_tokenizer()
    tokenized, _ = tokenize([*toy_pairs(1, conversational=True)], tokenizer)
    assert render_row(tokenized[0], tokenizer).split("\n") == [
        f"row 0: prompt, {len(tokenized[0]['prompt_ids'])} tokens",
        "    <|im_start|>user",
        "    What is 0 and 0?<|im_end|>",
        "    <|im_start|>assistant",
        "",
        f"chosen, {len(tokenized[0]['chosen_ids'])} tokens scored",
        "    ⟦The sum is 0.<|im_end|>⟧",
        f"rejected, {len(tokenized[0]['rejected_ids'])} tokens scored",
        "    ⟦I guess 1<|im_end|>⟧",
    ]
    long = {**tokenized[0], "chosen_ids": [tokenizer.bos_token_id] * 1000}
    assert "[... 880 tokens ...]" in render_row(long, tokenizer)
    assert render_row(long, tokenizer).count("<s>") == 120


@pytest.mark.parametrize("rank, hidden", [("0", 0), ("1", 1)])
def test_bars_are_shown_on_the_main_process_only(monkeypatch, rank, hidden):
    calls = []
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: calls.append(rank))
    monkeypatch.setenv("RANK", rank)
    tokenize(toy_pairs(2), toy_tokenizer())
    assert len(calls) == hidden


# --- The cache --------------------------------------------------------------------------------------------------------


def load(path):
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


@pytest.fixture
def source(tmp_path):
    rows = toy_pairs(20, conversational=True)
    rows[4]["chosen"] = None
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


@pytest.mark.slow
def test_several_processes_give_the_rows_of_one(source):
    one, report = tokenize(load(source), toy_tokenizer())
    assert one["row"][:] == [0, 1, 2, 3, *range(5, 20)]
    for file in source.parent.glob("cache/**/cache-*.arrow"):
        file.unlink()
    two, other_report = tokenize(load(source), toy_tokenizer(), num_proc=2)
    assert two.to_list() == one.to_list() and other_report == report
    assert len(list(source.parent.glob("cache/**/cache-*_of_00002.arrow"))) == 2, "the premise: two processes worked"


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that were tokenized, not read from the cache."""
    sizes = []
    work = PairTokenizer.__call__

    def count(self, batch, indices):
        sizes.append(len(indices))
        return work(self, batch, indices)

    monkeypatch.setattr(PairTokenizer, "__call__", count)
    return sizes


def test_second_run_reads_the_cache(source, batches):
    first, report = tokenize(load(source), toy_tokenizer())
    assert sum(batches) == 20
    used = toy_tokenizer()
    used(["a", "a longer text"], padding=True, truncation=True, max_length=4)  # leaves its state in the tokenizer
    second, second_report = tokenize(load(source), used)
    assert sum(batches) == 20
    assert second.to_list() == first.to_list() and second_report == report


def test_template_that_writes_the_date_is_rendered_anew_on_another_day(source, batches, monkeypatch):
    class Tomorrow(tokenization.date):
        @classmethod
        def today(cls):
            return cls(2222, 2, 2)

    dated = toy_tokenizer("{{ strftime_now('%d') }}" + CHATML)
    for tokenizer, sizes in ((toy_tokenizer(), [20, 20]), (dated, [40, 60])):
        with monkeypatch.context() as patch:
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[0]
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[0]
            patch.setattr(tokenization, "date", Tomorrow)
            tokenize(load(source), tokenizer)
            assert sum(batches) == sizes[1]


def test_whatever_changes_the_ids_changes_the_key(source, batches):
    other_end = toy_tokenizer()
    other_end.eos_token = "<|im_start|>"
    slow_with_bos = ToySlowTokenizer(chat_template=CHATML)
    slow_with_bos.adds_bos = True
    changes = [
        {},
        {"max_length": 90, "max_prompt_length": 40},
        {"max_length": 90, "max_prompt_length": 41},
        {"max_length": 90, "max_prompt_length": 40, "overlong": "drop"},
        {"max_length": 90, "max_prompt_length": 40, "truncation_mode": "keep_start"},
        {"system_messages": "merge"},
        {"system_messages": "drop"},
        {"auto_insert_empty_system_msg": True},
        {"tokenizer": toy_tokenizer(BOS_CHATML)},
        {"tokenizer": toy_tokenizer(eos="</s>")},
        {"tokenizer": toy_tokenizer(adds_bos=False)},
        {"tokenizer": other_end},
        {"tokenizer": ToySlowTokenizer(chat_template=CHATML)},
        {"tokenizer": slow_with_bos},
    ]
    for run, change in enumerate(changes, start=1):
        tokenize(load(source), **{"tokenizer": toy_tokenizer(), **change})
        assert sum(batches) == 20 * run
    tokenize(load(source), toy_tokenizer(), overlong="error")
    tokenize(load(source), ToySlowTokenizer(chat_template=CHATML))
    assert sum(batches) == 20 * (len(changes) + 1)
    tokenize(load(source).select(range(10)), toy_tokenizer())
    assert sum(batches) == 20 * (len(changes) + 1) + 10
    source.write_text("".join(json.dumps(row) + "\n" for row in toy_pairs(10, conversational=True)))
    tokenize(load(source), toy_tokenizer())
    assert sum(batches) == 20 * (len(changes) + 1) + 20


@pytest.mark.slow
def test_key_is_the_same_in_another_process(source):
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_tokenization import load, tokenize, toy_tokenizer\n"
        "print(tokenize(load(Path(sys.argv[1])), toy_tokenizer())[0].cache_files[0]['filename'])"
    )
    tests = Path(__file__).parents[1]
    places = [Path(__file__).parent, tests / "support", tests.parent]
    run = subprocess.run(
        [sys.executable, "-c", script, str(source), *map(str, places)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == tokenize(load(source), toy_tokenizer())[0].cache_files[0]["filename"]


# --- The settings of a run --------------------------------------------------------------------------------------------


def test_settings_reach_the_rows(tmp_path):
    rows = [
        {**row, "prompt": [SYSTEM, *row["prompt"][:-1], user("word " * 40)]}
        for row in toy_pairs(2, conversational=True)
    ]
    tokenizer = toy_tokenizer(ALTERNATING)

    def first_prompt(rows, tokenizer, **settings):
        args = SimPOConfig(output_dir=str(tmp_path), use_cpu=True, max_length=64, max_prompt_length=40, **settings)
        trainer = SimPOTrainer(
            tiny_model(vocab_size=300), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])

    start = "<|im_start|>user\nBe brief.\n\n"
    header = "<|im_start|>assistant\n"
    assert not first_prompt(rows, tokenizer, system_messages="merge").startswith(start)
    prompt = first_prompt(rows, tokenizer, system_messages="merge", truncation_mode="keep_start")
    assert prompt.startswith(start) and prompt.endswith(header)
    prompt = first_prompt(
        toy_pairs(2, conversational=True),
        toy_tokenizer(),
        auto_insert_empty_system_msg=True,
        truncation_mode="keep_start",
    )
    assert prompt.startswith("<|im_start|>system\n")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"system_messages": "remove"}, "system_messages is 'remove'; it must be 'keep', 'merge' or 'drop'"),
        ({"truncation_mode": "keep_middle"}, "truncation_mode is 'keep_middle'; it must be 'keep_end' or 'keep_start'"),
        (
            {"auto_insert_empty_system_msg": True, "system_messages": "merge"},
            "auto_insert_empty_system_msg is true and system_messages is 'merge': one inserts .* Leave out one",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, message):
    with pytest.raises(SimPOError, match=message):
        SimPOConfig(output_dir=str(tmp_path), **settings)


# A value of each setting that differs from its default, with what must go with it.
_OTHER_VALUES = {
    "pairs": {"pairs": "adjacent"},
    "margin_scale": {"margin_scale": 0.5},
    "max_length": {"max_length": 90},
    "max_prompt_length": {"max_prompt_length": 40},
    "truncation_mode": {"truncation_mode": "keep_start"},
    "on_bad_row": {"on_bad_row": "drop"},
    "overlong": {"overlong": "drop"},
    "system_messages": {"system_messages": "merge"},
    "auto_insert_empty_system_msg": {"auto_insert_empty_system_msg": True},
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RowSettings)])
def test_every_setting_of_the_rows_is_in_the_key_of_the_cache(name, source, batches):
    """Rows of other settings are never read from the cache; a new setting needs no line anywhere but its own."""
    limits = {"max_length": 100, "max_prompt_length": 50}
    tokenize(load(source), toy_tokenizer(), **limits)
    tokenize(load(source), toy_tokenizer(), **limits)
    assert sum(batches) == 20, "the premise: the same settings read the cache"
    tokenize(load(source), toy_tokenizer(), **{**limits, **_OTHER_VALUES[name]})
    assert sum(batches) == 40


def test_whatever_the_work_reads_is_in_the_key_or_follows_from_it():
    """Of a field that is added to the work, the key of the cache must be told; then this list."""
    in_key = {"tokenizer", "turn_end", "prefix_ids", "settings"}
    of_the_rows = {"inputs", "ranked"}  # in the fingerprint of the set
    follows = {"features", "opening"}  # from the settings, the columns and the chat template
    assert {field.name for field in dataclasses.fields(PairTokenizer)} == in_key | of_the_rows | follows
