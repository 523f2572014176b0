"""Rows of ranked answers, tokenized in one call, for the tests of their pairs and of training on them."""

from datasets import Dataset

from models import random_ranked
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import toy_tokenizer

LENGTHS = {"max_length": 256, "max_prompt_length": 128, "overlong": "truncate"}
ROWS = random_ranked(22)


def tokenize(rows, tokenizer=None, **settings):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows, on_mixed_types="use_json")
    return tokenize_preferences(dataset, tokenizer or toy_tokenizer(), RowSettings(**{**LENGTHS, **settings}))


def ranked(*scores, prompt="Say it", texts="abcdefgh", **more):
    """A row of texts with these scores."""
    answers = [None if text == "_" else f" {text}" for text in texts[: len(scores)]]
    return {"prompt": prompt, "responses": answers, "scores": list(scores), **more}


def said(row, tokenizer):
    """The pairs of a token row, as the texts of chosen and rejected."""
    texts = [tokenizer.decode(ids[:-1]).strip() for ids in row["response_ids"]]
    return [texts[chosen] + texts[rejected] for chosen, rejected in zip(row["chosen"], row["rejected"], strict=True)]
