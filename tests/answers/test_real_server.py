"""A server that others have written, over a real connection: `transformers serve` with a tiny model.

It is not vLLM, but it has the same API, and refuses fields that the API does not have.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig

from engines import environment, free_port
from models import SMALL, tiny_model
from simpo_trainer.answers.requests import Prompt
from simpo_trainer.answers.server_engine import ServerEngine
from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.answer_keys import GenerateSettings
from toy import assistant, toy_tokenizer, user

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}"),
]
LONGEST = 12
PROMPTS = [
    Prompt([user("What is 2 and 3?")]),
    Prompt([user("hi"), assistant("yes?"), user("the end")]),
    Prompt([user("ä ≠ 漢\n\nis")]),
]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = toy_tokenizer()
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = tiny_model(LlamaConfig(**{**SMALL, **special, "vocab_size": len(tokenizer)}))
    model.generation_config = GenerationConfig(**special, do_sample=True)
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(model_and_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for part in model_and_tokenizer:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of the server, once it answers."""
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    words = ["from transformers.cli.transformers import main; main()", "serve", "--host", "127.0.0.1"]
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", *words, "--port", str(port), "--device", "cpu"],
            env=environment(HF_HOME=str(home), NO_PROXY="127.0.0.1"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, home / "log.txt")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def wait_for(address, process, log, seconds=120):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            direct.open(address, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"no answer in {seconds} seconds: {log.read_text()}")


def answers_of(engine, prompts):
    found = {
        prompt.hash: answers for group in engine.answers(prompts, [False] * len(prompts)) for prompt, answers in group
    }
    return [found[prompt.hash] for prompt in prompts]


def test_greedy_answers_equal_those_of_the_model_itself(url, folder, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    settings = GenerateSettings(server=url, temperature=0.0, max_new_tokens=LONGEST, seeds=[1, 2], server_requests=4)
    engine = ServerEngine(settings, folder)
    engine.check()
    for prompt, answers in zip(PROMPTS, answers_of(engine, PROMPTS), strict=True):
        ids = tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            tokens = model.generate(**ids, do_sample=False, max_new_tokens=LONGEST)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text
        reason = "length" if len(tokens) == LONGEST else "stop"
        assert [(answer.text, answer.finish_reason, answer.tokens) for answer in answers] == [
            (text, reason, len(tokens))
        ] * 2


def test_sampled_answers_follow_their_seeds(url, folder):
    """One request at a time: this server has one generator of random numbers for all of them."""
    settings = GenerateSettings(server=url, max_new_tokens=LONGEST, temperature=2.0, seeds=[1, 2, 3], server_requests=1)
    first, again = [answers_of(ServerEngine(settings, folder), PROMPTS) for _ in range(2)]
    assert first == again
    assert all(len({answer.text for answer in answers}) == 3 for answers in first)


def test_a_model_that_is_not_there_is_told(url, tmp_path):
    missing = str(tmp_path / "no model")
    with pytest.raises(SimPOError, match="does not serve .*no model.*HTTP 500"):
        ServerEngine(GenerateSettings(server=url), missing).check()
