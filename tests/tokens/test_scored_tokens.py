"""What of a pair is scored: the ids of inference, tokens that merge over a boundary, begin and end tokens."""

import pytest

from logs import warnings
from token_rows import BOS_CHATML, END, only, pair, tokenize
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
