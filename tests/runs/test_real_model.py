"""A real model, SmolLM2-135M-Instruct: its tokens, its scores in every layout, its answers, and that it learns."""

import json
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from answering import read_lines, write_lines
from reference import in_float64, score_pairs
from simpo_trainer.answers.generation import generate
from simpo_trainer.answers.prompt_ids import prompt_ids
from simpo_trainer.answers.requests import Prompt
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.loss import simpo_loss
from simpo_trainer.model.scoring import add_scoring_forward, score_answers
from simpo_trainer.recipe import load_recipe
from simpo_trainer.recipe.answer_keys import GenerateSettings
from simpo_trainer.run import run
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import assistant, user

pytestmark = [pytest.mark.real, pytest.mark.slow]

# What a chat model is asked, a short answer and a windy one.
CHATS = [
    ("What is the capital of France?", "Paris.", "That is a wonderful question! There are many cities in France."),
    (
        "Name a fruit that is yellow.",
        "A banana is yellow.",
        "Fruits come in a lot of colours, as you may know already.",
    ),
    ("How many days has a week?", "Seven.", "A week has days, and each of them is special in its own way."),
    ("Translate 'good morning' into German.", "Guten Morgen!", "I would be glad to help you with a translation today."),
    ("Is water wet?\nAnswer in a word.", "Yes.", "It depends on what you mean: some say yes, and others say no."),
    ("What's 2 + 2?", "2 + 2 = 4", "Let me think about numbers for a while before I say anything."),
]
PAIRS = [
    {"prompt": [user(ask)], "chosen": [assistant(short)], "rejected": [assistant(long)]} for ask, short, long in CHATS
]
SEVERAL_TURNS = {
    "prompt": [{"role": "system", "content": "Be brief."}, user("Hi!"), assistant("Hello."), user("Who are you?")],
    "chosen": [assistant("A model.\n\n- small\n- café ☕")],
    "rejected": [assistant("I am SmolLM, and I can help you with many things.")],
}


@pytest.fixture(scope="module")
def tokenizer(real_model):
    return AutoTokenizer.from_pretrained(real_model)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Token rows of all pairs."""
    return list(tokenize_preferences(Dataset.from_list([*PAIRS, SEVERAL_TURNS]), tokenizer, RowSettings())[0])


def written(tokenizer, messages, **header):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **header)


# ---- Tokens ----


def test_the_scored_span_is_the_answer_and_one_end_token(tokenizer, rows):
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    for pair, row in zip([*PAIRS, SEVERAL_TURNS], rows, strict=True):
        prompt = written(tokenizer, pair["prompt"], add_generation_prompt=True)
        assert row["prompt_ids"] == prompt
        # The token that begins each turn is also the tokenizer's BOS: no other is put in front.
        turns = len(pair["prompt"]) + 1 + (pair["prompt"][0]["role"] != "system")  # one is that of the answer
        assert prompt[0] == start and prompt.count(start) == turns
        for side in ("chosen", "rejected"):
            whole = written(tokenizer, pair["prompt"] + pair[side])
            assert whole[: len(prompt)] == prompt
            answer = row[f"{side}_ids"]
            assert prompt + answer == whole[:-1]  # without the line break behind the last turn
            assert answer.count(end) == 1 and answer[-1] == end
            assert tokenizer.decode(answer[:-1]) == pair[side][0]["content"]


def test_a_prompt_to_answer_is_written_as_a_trained_one(tokenizer, rows):
    prompts = [Prompt(pair["prompt"]) for pair in [*PAIRS, SEVERAL_TURNS]]
    found = prompt_ids(prompts, tokenizer, RowSettings(), 8192)
    assert [found.ids[prompt.hash] for prompt in prompts] == [row["prompt_ids"] for row in rows]
    assert found.end_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


# ---- Scores ----


@torch.no_grad()
def test_every_layout_has_the_losses_of_one_answer_after_the_other(real_model, rows):
    model = AutoModelForCausalLM.from_pretrained(real_model).eval()
    expected = score_pairs(in_float64(model), rows)
    averages = torch.stack([answer.average for answer in [*expected.chosen, *expected.rejected]])
    add_scoring_forward(model)
    losses = {}
    for layout in ("padded", "shared_prefix", "packed"):
        found = score_answers(model, PairCollator(layout=layout)(rows)).average
        torch.testing.assert_close(found.double(), averages, rtol=0, atol=1e-5)
        losses[layout] = simpo_loss(*found.chunk(2), beta=2.0, gamma_beta_ratio=0.5)
        torch.testing.assert_close(losses[layout], losses["padded"], rtol=0, atol=1e-5)
        # The reference is in float64: a loss is twice the difference of two averages, each rounded.
        reference = torch.stack(expected.preference_losses())
        torch.testing.assert_close(losses[layout].double(), reference, rtol=0, atol=3e-5)
    assert averages.min() < -2 < averages.max() < 0  # it is a language model, which expects some of the answers


# ---- Answers ----


def test_answers_do_not_depend_on_the_order_of_rows_or_the_batch(real_model, tmp_path):
    asked = [{"prompt": pair["prompt"], "number": place} for place, pair in enumerate(PAIRS)]
    shuffled = random.Random(2).sample(asked, len(asked))
    files = []
    for name, given, at_once in (("a", asked, 4), ("b", shuffled, 4), ("c", asked, 12)):
        write_lines(tmp_path / f"{name}.jsonl", given)
        recipe = load_recipe(
            _recipe(tmp_path / f"{name}.yaml", real_model, tmp_path / f"{name}.jsonl", tmp_path / "run")
        )
        output = tmp_path / f"{name}-answers.jsonl"
        settings = GenerateSettings(max_new_tokens=10, seeds=[1, 2], batch_size=at_once, output=str(output))
        files.append(read_lines(generate(recipe, settings)))
    assert files[0] == files[1] == files[2]
    answers = [answer for row in files[0] for answer in row["answers"]]
    assert len(set(answers)) > 8 and not any("<|im" in answer for answer in answers)
    paris = next(row for row in files[0] if row["number"] == 0)
    assert any("Paris" in answer for answer in paris["answers"])


# ---- Training ----


def _recipe(file: Path, model: Path, data: Path, output: Path, **settings: object) -> Path:
    lines = {"model_name_or_path": str(model), "dataset_name": str(data), "output_dir": str(output), **settings}
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    return file


def _train(folder: Path, model: Path, **settings: object) -> list[dict[str, float]]:
    """The log of a run with an adapter, each of whose steps is over all pairs."""
    write_lines(folder / "pairs.jsonl", PAIRS)
    common = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
    common |= {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
    common |= {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "use_cpu": True, "bf16": False}
    common |= {"eval_strategy": "no", "save_strategy": "no", "max_length": 256}
    run(load_recipe(_recipe(folder / "run.yaml", model, folder / "pairs.jsonl", folder / "run", **common, **settings)))
    history = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "rewards/margins" in entry]


@pytest.fixture(scope="module")
def learnt(real_model, tmp_path_factory):
    """The log of a run of ten steps."""
    return _train(tmp_path_factory.mktemp("learnt"), real_model, max_steps=10)


def test_it_learns_to_be_brief(learnt):
    """Answers that it took for worse at first are the better ones for it a few steps later."""
    margins, wins = ([entry[f"rewards/{name}"] for entry in learnt] for name in ("margins", "accuracies"))
    assert margins == sorted(margins) and margins[-1] > margins[0] + 1
    assert wins[0] < 1 == wins[-1]
    assert learnt[-1]["loss"] < learnt[0]["loss"] / 2


def test_a_gguf_file_trains_as_the_folder_made_of_it(learnt, tmp_path):
    from real_model import gguf_file

    file = gguf_file()
    [first] = _train(tmp_path, file.parent, max_steps=1, model_init_kwargs={"gguf_file": file.name})
    for figure in ("loss", "grad_norm", "rewards/margins", "logits/chosen"):
        assert first[figure] == learnt[0][figure]
