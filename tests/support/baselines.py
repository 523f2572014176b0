"""Baselines on small rows: trainers of DPO and SFT, and what their runs leave."""

import json
from pathlib import Path

from datasets import Dataset

from models import (
    random_pairs,
    word_tokenizer,
)
from simpo_trainer import SimPOConfig
from simpo_trainer.baselines.dpo import DPOBaseline
from simpo_trainer.baselines.settings import ARGUMENTS, DPOArguments
from simpo_trainer.baselines.sft import SFTBaseline

# Pairs that are kept as text: an answer of an end token alone is an empty text.
PAIRS = [pair for pair in random_pairs(40) if len(pair["chosen_ids"]) > 1 and len(pair["rejected_ids"]) > 1][:16]
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m['content'] }} {% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} w3 {% endif %}"
)


def dpo_baseline(world, folder, rows, *, eval_rows=None, peft_config=None, shared=None, **settings):
    """The trainer on token rows."""
    shared = shared or SimPOConfig(output_dir=str(folder), use_cpu=True)
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | settings
    return DPOBaseline(
        model=str(world / "model"),
        args=DPOArguments(output_dir=str(folder), max_length=None, remove_unused_columns=False, **settings),
        shared=shared,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
        processing_class=word_tokenizer(),
        peft_config=peft_config,
    )


def sft_baseline(world, folder, rows, tokenizer=None, shared=None, **settings):
    recipe_settings = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | settings
    return SFTBaseline(
        model=str(world / "model"),
        args=ARGUMENTS["sft"](output_dir=str(folder), max_length=None, remove_unused_columns=False, **recipe_settings),
        shared=shared or SimPOConfig(output_dir=str(folder), use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None,
        processing_class=tokenizer or word_tokenizer(),
    )


def ids_of(rows):
    return [{name: row[name] for name in IDS} for row in rows]


def manifest(folder="out"):
    return json.loads((Path(folder) / "run_manifest.json").read_text())


def losses_of(folder="out"):
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def chat_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer
