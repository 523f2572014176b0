"""The calls of vLLM, with a stand-in for it: what it is given, and what is made of what it returns."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from simpo_trainer.answers.requests import Answer, Prompt
from simpo_trainer.answers.vllm_engine import VllmEngine, vllm_is_there
from simpo_trainer.recipe.answer_keys import GenerateSettings
from toy import user


@pytest.fixture
def vllm(monkeypatch):
    """A module with vLLM's documented calls, which answers with the tokens of the prompt and the seed."""
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.loaded, module.calls = [], []

    class LLM:
        def __init__(self, **options):
            module.loaded.append(options)

        def generate(self, prompts, sampling_params, use_tqdm=True):
            module.calls.append((prompts, sampling_params))
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            text=f"{prompt['prompt_token_ids']} {params.seed}",
                            finish_reason="length",
                            token_ids=(5, 6, 7),
                        )
                    ]
                )
                for prompt, params in zip(prompts, sampling_params, strict=True)
            ]

    module.LLM = LLM
    module.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def prompt_ids(prompt):
    return [int(prompt.messages[0]["content"])]


def engine_of(**settings):
    settings = GenerateSettings(**{"seeds": [13, 21], **settings})
    return VllmEngine(settings, "org/model", "org/tokenizer", prompt_ids, [2, 9], revision="abc")


PROMPTS = [Prompt([user(str(number))]) for number in range(150)]


def test_prompts_are_answered_in_groups(vllm):
    groups = list(engine_of().answers(PROMPTS, [number == 3 for number in range(150)]))
    assert [len(group) for group in groups] == [64, 64, 21]
    answered = [pair for group in groups for pair in group]
    assert [prompt for prompt, _ in answered] == PROMPTS[:3] + PROMPTS[4:]
    for prompt, answers in answered:
        seeds = [answer.text.split("] ")[1] for answer in answers]
        assert [answer.text.split("] ")[0] for answer in answers] == [f"[{prompt.messages[0]['content']}"] * 2
        assert len(set(seeds)) == 2
    assert answered[0][1][0] == Answer(answered[0][1][0].text, "length", 3)


def test_what_vllm_is_given(vllm):
    list(engine_of(temperature=0.7, top_p=0.9, max_new_tokens=11).answers(PROMPTS[:1], [False]))
    assert vllm.loaded == [{"model": "org/model", "tokenizer": "org/tokenizer", "revision": "abc"}]
    [(prompts, parameters)] = vllm.calls
    assert prompts == [{"prompt_token_ids": [0]}] * 2
    given = vars(parameters[0])
    assert given | {"seed": None} == {
        "n": 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 11,
        "seed": None,
        "stop_token_ids": [2, 9],
    }


def test_each_request_has_a_seed_of_its_own_that_does_not_depend_on_the_others(vllm):
    list(engine_of().answers(PROMPTS, [False] * 150))
    seeds = [parameters.seed for _, group in vllm.calls for parameters in group]
    assert len(set(seeds)) == 300 and all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**60
    list(engine_of(seeds=[21]).answers(PROMPTS[7:8], [False]))
    assert vllm.calls[-1][1][0].seed == seeds[2 * 7 + 1]


def test_nothing_is_loaded_where_all_is_done(vllm):
    assert not list(engine_of().answers(PROMPTS, [True] * 150))
    assert not vllm.loaded


def test_it_is_known_whether_vllm_is_there(monkeypatch):
    for found, there in ((None, False), (object(), True)):
        monkeypatch.setattr("simpo_trainer.answers.vllm_engine.find_spec", lambda name, found=found: found)
        assert vllm_is_there() is there
