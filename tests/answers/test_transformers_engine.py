"""Answers by transformers: what they depend on, where they end, and that they are those of the model."""

import random
from dataclasses import replace

import pytest
import torch

from models import tiny_model
from simpo_trainer import SimPOError
from simpo_trainer.answers.requests import Prompt
from simpo_trainer.answers.transformers_engine import TransformersEngine, noise_key
from simpo_trainer.recipe.answer_keys import GenerateSettings
from toy import toy_tokenizer, user

SETTINGS = GenerateSettings(max_new_tokens=12, seeds=[1, 2, 3], batch_size=9)
PROMPTS = sorted([Prompt([user(f"Say {i}" + " again" * (i % 5))]) for i in range(14)], key=lambda prompt: prompt.hash)


@pytest.fixture
def model():
    model = tiny_model(vocab_size=len(toy_tokenizer()))
    model.generation_config.eos_token_id = None
    return model


def engine_of(model, settings=SETTINGS, positions=None, prompts=PROMPTS):
    tokenizer = toy_tokenizer()
    ids = {
        prompt.hash: tokenizer(
            tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
        )["input_ids"]
        for prompt in prompts
    }
    return TransformersEngine(model, tokenizer, ids, [tokenizer.eos_token_id], settings, positions)


def answered(engine, prompts=PROMPTS, done=()):
    is_done = [prompt.hash in done for prompt in prompts]
    return {prompt.hash: answers for group in engine.answers(prompts, is_done) for prompt, answers in group}


def test_answers_do_not_depend_on_order_batch_or_a_restart(model):
    expected = answered(engine_of(model))
    assert len(expected) == len(PROMPTS) and all(len(answers) == 3 for answers in expected.values())
    assert len({answer.text for answers in expected.values() for answer in answers}) > 30
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert answered(engine_of(model), shuffled) == expected
    assert answered(engine_of(model, replace(SETTINGS, batch_size=1))) == expected
    half = set(sorted(expected)[:5])
    assert answered(engine_of(model), done=half) == {key: expected[key] for key in expected.keys() - half}


def test_a_killed_run_makes_the_batches_that_are_missing(model):
    """The same batches as the whole run, so that not even rounding differs."""
    groups = [[prompt.hash for prompt, _ in group] for group in engine_of(model).answers(PROMPTS, [False] * 14)]
    done = {*groups[0], *groups[2]}
    engine = engine_of(model)
    again = engine.answers(PROMPTS, [prompt.hash in done for prompt in PROMPTS])
    assert [[prompt.hash for prompt, _ in group] for group in again] == [groups[1], *groups[3:]]


def test_each_answer_has_noise_of_its_own():
    keys = {noise_key(prompt, seed) for prompt in PROMPTS for seed in (1, 2, 3)}
    assert len(keys) == 3 * len(PROMPTS) and all(-(2**63) <= key < 2**63 for key in keys)
    assert noise_key(Prompt(PROMPTS[0].messages), 1) == noise_key(PROMPTS[0], 1)


def test_greedy_answers_are_those_of_the_logits(model):
    """One token after the other, each from the whole text before it."""
    settings = GenerateSettings(max_new_tokens=8, temperature=0.0, num_answers=1)
    engine = engine_of(model, settings)
    found, tokenizer = answered(engine), toy_tokenizer()
    for prompt in PROMPTS[:4]:
        ids = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(ids, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < 8 and (not new or new[-1] != tokenizer.eos_token_id):
            with torch.inference_mode():
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        ended = new[-1] == tokenizer.eos_token_id
        [answer] = found[prompt.hash]
        assert answer.tokens == len(new)
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.text == tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)


def test_an_answer_ends_at_every_end_token(model):
    """Those of the template and those of the model's generation config."""
    model.generation_config.eos_token_id = list(range(len(toy_tokenizer())))
    for answers in answered(engine_of(model)).values():
        assert [(answer.text, answer.finish_reason, answer.tokens) for answer in answers] == [("", "stop", 1)] * 3


def test_the_model_s_own_sampling_settings_are_not_used(model):
    expected = answered(engine_of(model))
    model.generation_config.update(repetition_penalty=5.0, temperature=0.1, do_sample=True, num_beams=2)
    assert answered(engine_of(model)) == expected


def test_prompts_near_the_last_position_get_shorter_answers(model):
    lengths = {hash_: len(ids) for hash_, ids in engine_of(model)._ids.items()}
    positions = max(lengths.values()) + 4
    found = answered(engine_of(model, positions=positions))
    whole = answered(engine_of(model))
    for key, answers in found.items():
        limit = min(12, positions - lengths[key])
        assert [min(answer.tokens, limit) for answer in whole[key]] == [answer.tokens for answer in answers]
    assert min(answer.tokens for answers in found.values() for answer in answers) <= 4


def test_too_little_memory_says_what_to_lower(model, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = engine_of(model)
    monkeypatch.setattr(engine._model, "generate", fails)
    with pytest.raises(SimPOError, match=r"too small for 9 answers at once. Lower batch_size \(now 9\)"):
        answered(engine)
