"""The quickstart's world: instructions and checkers, data on disk, tokenizer, warm-up batches, and its comparison."""

import json
import math
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_trainer.errors import SimPOError
from simpo_trainer.quickstart.compare import MAX_NEW_TOKENS, average_log_probs, compare, greedy_answers
from simpo_trainer.quickstart.tasks import BAD_FORMS, KINDS, draw, draw_distinct, is_right
from simpo_trainer.quickstart.warm_up import BATCH_SIZE, IGNORED, make_batch
from simpo_trainer.quickstart.world import HELD_OUT_PAIRS, TRAIN_PAIRS, prepare

RIGHT_ANSWERS = {
    "copy": ("toad rake", "toad rake"),
    "twice": ("fig nut", "fig nut fig nut"),
    "first": ("saw red crow", "saw"),
    "last": ("saw red crow", "crow"),
    "count": ("eel axe blue", "three"),
    "commas": ("eel axe blue", "eel, axe, blue"),
    "brackets": ("eel axe", "[eel axe]"),
    "swap": ("yak soup", "soup yak"),
    "ends": ("yak soup pink rice", "yak and rice"),
    "alphabet": ("lynx axe soup", "axe"),
    "longest": ("lynx hammer soup", "hammer"),
    "animal": ("hammer crow soup", "crow"),
    "food": ("hammer crow soup", "soup"),
}


def words_of(instruction: str) -> str:
    return instruction.partition(": ")[2]


# Tasks


def test_every_kind_has_an_expected_answer():
    assert set(RIGHT_ANSWERS) == set(KINDS)


@pytest.mark.parametrize("kind", RIGHT_ANSWERS)
def test_right_and_wrong_answers(kind):
    words, right = RIGHT_ANSWERS[kind]
    for seed in range(20):
        answers = KINDS[kind].answer(words.split(), Random(seed))
        assert answers is not None
        assert answers.right == right
        assert not is_right(right, answers.wrong)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("longest", "crow toad"), ("animal", "crow toad axe"), ("animal", "axe saw"), ("food", "red axe")],
)
def test_words_without_one_right_answer_are_refused(kind, words):
    assert KINDS[kind].answer(words.split(), Random(0)) is None


def test_checker():
    assert is_right("yak and rice", " yak  and rice ")
    for answer in ("", "yak", "rice and yak", "yak and rice, there is much to say", "well, yak and rice"):
        assert not is_right("yak and rice", answer)
    assert not is_right("eel, axe", "eel axe")
    assert not is_right("[eel axe]", "eel axe")


def test_items_are_deterministic():
    items = draw_distinct(Random(3), False, 300)
    assert items == draw_distinct(Random(3), False, 300)
    assert items != draw_distinct(Random(4), False, 300)


def test_held_out_words_never_occur_in_training():
    train, held_out = draw_distinct(Random(0), False, 4000), draw_distinct(Random(1), True, 800)
    assert not {item.instruction for item in train} & {item.instruction for item in held_out}
    assert not {words_of(item.instruction) for item in train} & {words_of(item.instruction) for item in held_out}
    assert {item.kind for item in train} == {item.kind for item in held_out} == set(KINDS)


def test_bad_answers_are_never_right_and_take_every_form():
    rng = Random(0)
    items = [draw(rng, False) for _ in range(2000)]
    assert not any(is_right(item.right, item.bad) for item in items)
    wrong = sum(not item.bad.startswith("well, ") for item in items) / len(items)
    buried = sum(item.bad.startswith("well, ") and item.bad.endswith(f", {item.right}") for item in items) / len(items)
    assert wrong == pytest.approx(BAD_FORMS["wrong"], abs=0.02)
    assert buried == pytest.approx(BAD_FORMS["rambling, then right"], abs=0.04)


# World


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    prepare(folder, warm_up_steps=2, report=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def model(world) -> Any:
    return AutoModelForCausalLM.from_pretrained(world / "model")


@pytest.fixture(scope="module")
def tokenizer(world) -> Any:
    return AutoTokenizer.from_pretrained(world / "model")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_preparations_write_the_same_bytes_and_leave_the_generator_alone(world, tmp_path):
    before = torch.get_rng_state()
    prepare(tmp_path, warm_up_steps=2, report=lambda line: None)
    assert torch.equal(torch.get_rng_state(), before)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert Path("model/model.safetensors") in files and Path("data/train.jsonl") in files
    assert [file for file in files if (world / file).read_bytes() != (tmp_path / file).read_bytes()] == []


def test_preparation_refuses_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SimPOError, match="cannot be made"):
        prepare(tmp_path / "file" / "world", report=lambda line: None)


def test_pairs_and_prompts(world):
    train, test, prompts = (read(world / name) for name in ("data/train.jsonl", "data/test.jsonl", "prompts.jsonl"))
    assert (len(train), len(test)) == (TRAIN_PAIRS, HELD_OUT_PAIRS)
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in test}
    for row, prompt in zip(test, prompts, strict=True):
        assert row["prompt"] == [{"role": "user", "content": prompt["instruction"]}]
        assert is_right(prompt["right"], row["chosen"][0]["content"])
        assert not is_right(prompt["right"], row["rejected"][0]["content"])
        assert row["kind"] == prompt["kind"]


def test_model_loads_and_ends_where_its_tokenizer_does(model, tokenizer):
    assert 1e6 < model.num_parameters() < 3e6
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_template_keeps_the_prompt_and_ends_every_answer_once(world, tokenizer):
    for row in read(world / "data/train.jsonl")[:300] + read(world / "data/test.jsonl"):
        for answer in (row["chosen"], row["rejected"]):
            prompt = tokenizer(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
            whole = tokenizer(tokenizer.apply_chat_template(row["prompt"] + answer, tokenize=False))["input_ids"]
            start = len(prompt["input_ids"])
            assert whole[:start] == prompt["input_ids"]
            assert whole.count(tokenizer.eos_token_id) == 1 and whole[-1] == tokenizer.eos_token_id
            assert tokenizer.unk_token_id not in whole
            assert tokenizer.decode(whole[start:], skip_special_tokens=True) == answer[0]["content"]
            assert tokenizer.decode(whole[:start], skip_special_tokens=True) == row["prompt"][0]["content"]


def test_template_takes_further_turns_and_refuses_other_roles(tokenizer):
    turns = [{"role": role, "content": "red"} for role in ("user", "assistant", "user")]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><user>red<assistant>red<end><user>red<assistant>"
    with pytest.raises(Exception, match="user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "red"}], tokenize=False)


def test_warm_up_batches_label_good_and_bad_answers_alike(tokenizer):
    good, instructions, rng = 0, [], Random(5)
    for _ in range(20):
        input_ids, labels = make_batch(tokenizer, rng)
        for ids, answer in zip(input_ids, labels, strict=True):
            labelled = answer != IGNORED
            assert torch.equal(ids[labelled], answer[labelled])
            assert answer[labelled][-1] == tokenizer.eos_token_id
            assert ids[labelled.nonzero()[0, 0] - 1] == tokenizer.convert_tokens_to_ids("<assistant>")
            good += not tokenizer.decode(answer[labelled]).startswith("well")
            instructions.append(tokenizer.decode(ids[~labelled], skip_special_tokens=True))
    # Half are good, and of the bad ones some are merely wrong.
    assert good / (20 * BATCH_SIZE) == pytest.approx(0.5 + 0.5 * BAD_FORMS["wrong"], abs=0.08)
    assert not {item.instruction for item in draw_distinct(Random(0), True, 800)} & set(instructions)


# Comparison


class Bigrams:
    """A stand-in for a model: the logits at a position depend on the token there alone."""

    def __init__(self, tokens: int) -> None:
        self.table = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(0))

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_average_log_probs_by_hand(tokenizer):
    bigrams = Bigrams(len(tokenizer))
    rows = [("Say the last word: red axe", "axe"), ("Swap these: red axe", "axe red")]
    found = average_log_probs(
        bigrams,  # type: ignore[arg-type]
        tokenizer,
        [[{"role": "user", "content": instruction}] for instruction, _ in rows],
        [[{"role": "assistant", "content": answer}] for _, answer in rows],
    )
    for (_, answer), average in zip(rows, found.tolist(), strict=True):
        path = tokenizer.convert_tokens_to_ids(["<assistant>", *answer.split(), "<end>"])
        steps = []
        for token, following in zip(path, path[1:], strict=False):
            logits = bigrams.table[token].tolist()
            steps.append(logits[following] - math.log(sum(map(math.exp, logits))))
        assert average == pytest.approx(sum(steps) / len(steps), abs=1e-5)


@pytest.mark.slow
def test_greedy_answers_in_a_batch_are_those_of_each_prompt_alone(model, tokenizer):
    instructions = ["Swap these: red axe", "How many words: red axe crow fig", "Copy this: yak"]
    for instruction, answer in zip(instructions, greedy_answers(model, tokenizer, instructions), strict=True):
        chat = [{"role": "user", "content": instruction}]
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))["input_ids"]
        new: list[int] = []
        while len(new) < MAX_NEW_TOKENS and tokenizer.eos_token_id not in new:
            new.append(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax().item())
        assert (answer.text, answer.tokens) == (tokenizer.decode(new, skip_special_tokens=True), len(new))


def test_comparison_says_what_is_missing(tmp_path, world):
    with pytest.raises(SimPOError, match="prompts.jsonl.*quickstart.py prepare"):
        compare(tmp_path, Console(quiet=True))
    with pytest.raises(SimPOError, match="no trained model.*simpo train"):
        compare(world, Console(quiet=True))


@pytest.mark.slow
def test_comparison_refuses_a_model_that_is_no_better(tmp_path, world, model, tokenizer):
    for name in ("model", "trained"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "data").mkdir()
    for name in ("data/test.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text("".join((world / name).read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(SimPOError, match="pair accuracy went from"):
        compare(tmp_path, Console(quiet=True))
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["before"] == result["after"]
    assert result["samples"] == []
