"""Rows to token ids in one call, for the tests of what is scored, cut, dropped and kept."""

from datasets import Dataset, load_dataset

from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import (
    CHATML,
)

BOS_CHATML = "{{ bos_token }}" + CHATML
END = "<|im_end|>"
ALTERNATING = (
    "{% for m in messages %}{{ raise_exception('no system role here') if m.role == 'system' }}"
    "{{ raise_exception('roles must alternate') if (m.role == 'user') != (loop.index0 % 2 == 0) }}{% endfor %}" + CHATML
)
SYSTEM = {"role": "system", "content": "Be brief."}


def tokenize(rows, tokenizer, *, num_proc=None, name="train", **settings):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    settings = RowSettings(**{"max_length": 4096, "max_prompt_length": 2048, **settings})
    return tokenize_preferences(dataset, tokenizer, settings, num_proc=num_proc, name=name)


def load(path):
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


def pair(prompt, chosen, rejected="something else"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def only(row, tokenizer, **options):
    """The token row of a single pair."""
    return tokenize([row], tokenizer, **options)[0][0]
