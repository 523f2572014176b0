"""The road of on-policy data in the world of the quickstart: a model learns from its own answers, scored two ways."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
from typer.testing import CliRunner

from answering import read_lines, write_lines
from simpo_trainer.answers.card import read_card
from simpo_trainer.answers.generation import generate
from simpo_trainer.cli.app import app
from simpo_trainer.quickstart.tasks import draw_distinct, is_right
from simpo_trainer.quickstart.world import prepare
from simpo_trainer.recipe import load_recipe
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings, IterateSettings
from simpo_trainer.recipe.load import check_recipe
from simpo_trainer.rounds.iteration import iterate
from simpo_trainer.run import run
from simpo_trainer.scores.annotation import annotate

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


class Killed(Exception):
    """Stands for a kill between two stages."""


def simpo_here(killed_after=10**6):
    """Returns what runs a stage in this process, and counts them."""
    ran = []

    def run_stage(words):
        if len(ran) == killed_after:
            raise Killed
        ran.append(words[0])
        return CliRunner().invoke(app, list(words)).exit_code

    return run_stage, ran


def test_rounds_make_the_model_better_and_go_on_after_kills(world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    write_lines(tmp_path / "prompts.jsonl", read_lines(world / "prompts.jsonl")[:200])
    recipe.write_text(
        f"extends: {world / 'recipe.yaml'}\ndataset_name: {tmp_path / 'prompts.jsonl'}\n"
        f"output_dir: {tmp_path / 'rounds'}\nnum_train_epochs: 1\n"
        f"eval_dataset_name: {world / 'test.jsonl'}\ndataset_test_split: train\n"
        "generate: {max_new_tokens: 24, batch_size: 200, num_answers: 4}\n"
        f"annotate: {{score: '{world / 'rules.py'}:score'}}\n"
    )
    run_stage, ran = simpo_here()
    facts = iterate(check_recipe(recipe), IterateSettings(rounds=2), run=run_stage)
    stages = ["generate", "annotate", "generate", "annotate"]
    round_stages = ["generate", "annotate", "train", "generate", "annotate"]
    assert ran == [*stages, *round_stages, *round_stages]
    assert facts[2].held_out_score > facts[1].held_out_score > facts[0].held_out_score + 0.05
    assert facts[1].change_low > 0 and facts[1].rose > facts[1].fell
    assert facts[2].pair_accuracy > facts[0].pair_accuracy and facts[1].chosen_drift is not None
    assert facts[1].rows_trained_on + facts[1].prompts_without_rows == 200

    whole = (tmp_path / "rounds" / "rounds.json").read_bytes()
    for each in ("rounds.json", "rounds.png"):
        (tmp_path / "rounds" / each).unlink()
    shutil.rmtree(tmp_path / "rounds" / "round-2")
    for killed_after in (0, 2, 1):
        with pytest.raises(Killed):
            iterate(check_recipe(recipe), IterateSettings(rounds=2), run=simpo_here(killed_after)[0])
    run_stage, ran = simpo_here()
    iterate(check_recipe(recipe), IterateSettings(rounds=2), run=run_stage)
    assert ran == ["generate", "annotate"]
    assert (tmp_path / "rounds" / "rounds.json").read_bytes() == whole
    assert (tmp_path / "rounds" / "rounds.png").is_file()
