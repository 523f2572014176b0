"""The road of on-policy data in the world of the quickstart: a model learns from its own answers, scored two ways."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

from answering import read_lines, write_lines
from simpo_trainer.answers.annotation import annotate
from simpo_trainer.answers.card import read_card
from simpo_trainer.answers.generation import generate
from simpo_trainer.quickstart.tasks import draw_distinct, is_right
from simpo_trainer.quickstart.world import prepare
from simpo_trainer.recipe import load_recipe
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings
from simpo_trainer.run import run

pytestmark = pytest.mark.slow

RULES = """
from simpo_trainer.quickstart.tasks import is_right

def score(prompt, answer, row):
    return is_right(row["right"], answer)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that answers well and badly, prompts to learn from, and held-out prompts, each with its right answer."""
    folder = tmp_path_factory.mktemp("world")
    prepare(folder, warm_up_steps=300, report=lambda line: None)
    rng = Random(7)
    for name, held_out, count in (("prompts", False, 400), ("test", True, 150)):
        items = draw_distinct(rng, held_out, count)
        write_lines(folder / f"{name}.jsonl", [{"prompt": item.instruction, "right": item.right} for item in items])
    (folder / "rules.py").write_text(RULES)
    (folder / "recipe.yaml").write_text(
        f"extends: quickstart\nmodel_name_or_path: {folder / 'model'}\ndataset_name: {folder / 'prompts.jsonl'}\n"
        f"output_dir: {folder / 'trained'}\nper_device_train_batch_size: 16\nlogging_steps: 100\neval_strategy: 'no'\n"
    )
    return folder


@pytest.fixture(scope="module")
def answers(world):
    return generate(load_recipe(world / "recipe.yaml"), GenerateSettings(max_new_tokens=24, batch_size=200))


def greedy(world: Path, model: Path) -> float:
    """The share of right greedy answers to held-out prompts."""
    given = {"dataset_name": str(world / "test.jsonl"), "model_name_or_path": str(model), "output_dir": str(model)}
    once = GenerateSettings(max_new_tokens=24, batch_size=200, temperature=0.0, num_answers=1)
    rows = read_lines(generate(load_recipe(world / "recipe.yaml", given), once))
    return sum(is_right(row["right"], row["answers"][0]) for row in rows) / len(rows)


def test_a_model_learns_from_its_own_answers(world, answers):
    pairs = annotate(answers, AnnotateSettings(score=f"{world / 'rules.py'}:score"))
    rights = {json.dumps(row["prompt"]): row["right"] for row in read_lines(answers)}
    for row in read_lines(pairs):
        right = rights[json.dumps(row["prompt"])]
        assert is_right(right, row["chosen"][0]["content"]) and not is_right(right, row["rejected"][0]["content"])
    card = read_card(pairs)
    assert card["generated"]["answers"] == 2000 and card["annotated"]["answers_scored"] == 2000
    assert card["selected"]["rows"] + sum(card["selected"]["prompts_left_out"].values()) == 400
    before = greedy(world, world / "model")
    given = {"dataset_name": str(pairs), "dataset_test_split": "null"}
    run(load_recipe(world / "recipe.yaml", given))
    assert greedy(world, world / "trained") > before + 0.1


def test_a_reward_model_finds_the_right_answers(world, answers):
    """One that trl trains on the pairs of the quickstart, whose answers are not the model's own."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(world / "model", num_labels=1, pad_token_id=tokenizer.pad_token_id)
    arguments = RewardConfig(
        output_dir=str(world / "reward-run"),
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(world / "data" / "train.jsonl"), split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(world / "reward"))
    pairs = annotate(answers, AnnotateSettings(reward_model=str(world / "reward"), batch_size=64))
    rights = {json.dumps(row["prompt"]): row["right"] for row in read_lines(answers)}
    decided = [
        is_right(rights[json.dumps(row["prompt"])], row["chosen"][0]["content"])
        for row in read_lines(pairs)
        if is_right(rights[json.dumps(row["prompt"])], row["chosen"][0]["content"])
        or is_right(rights[json.dumps(row["prompt"])], row["rejected"][0]["content"])
    ]
    assert len(decided) > 100 and sum(decided) / len(decided) > 0.9
