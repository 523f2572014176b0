"""Pairs over the limits: what is cut, from which end, and what is dropped or refused."""

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.pair_tokenizer import fit_to_length
from simpo_trainer.tokens.settings import RowSettings
from token_rows import BOS_CHATML, END, only, pair, tokenize
from toy import (
    CHATML,
    assistant,
    toy_tokenizer,
    toy_tokenizer_without_template,
    user,
)

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
