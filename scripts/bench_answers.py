"""Tokens per second of `simpo generate`'s engine of transformers beside a plain loop over `generate`.

Both answer the same prompts of the profile's lengths with the same number of tokens, no answer ending before; the plain
loop takes the prompts in their order, with transformers' own temperature and top-p, and `num_return_sequences`. The
head of the random model is scaled so that its logits spread as those of a language model do, over few likely tokens.

tokens/s   new tokens over the median time
x plain    over that of the plain loop
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_model import make_model
from bench_training import make_job
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from simpo_trainer.answers.requests import Prompt
from simpo_trainer.answers.transformers_engine import TransformersEngine
from simpo_trainer.recipe.answer_keys import GenerateSettings

# Standard deviation of the logits: of 32,000 tokens, some 30 are then in the likeliest 95 % at temperature 0.8.
_SPREAD = 5.0


def run_answers(options: argparse.Namespace) -> None:
    """Let both answer in turns, and print the table and the JSON line."""
    job = make_job(options)
    torch.manual_seed(options.seed)
    model = make_model(job).eval()
    if not job["folder"]:
        _spread(model)
    vocab = job["shape"]["vocab_size"]
    prompts = [list(row["prompt_ids"]) for row in job["rows"]]
    settings = GenerateSettings(max_new_tokens=options.new_tokens, batch_size=options.answers_at_once)
    ways: dict[str, Callable[[], int]] = {
        "generate, a plain loop": lambda: _plain(model, prompts, settings),
        "simpo generate": lambda: _ours(model, prompts, settings, vocab),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for repeat in range(options.repeats + 1):
        for name, answer in ways.items():
            start = time.perf_counter()
            tokens[name] = answer()
            if repeat:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: tokens[name] / statistics.median(found) for name, found in seconds.items()}
    plain = rates["generate, a plain loop"]
    table = Table("", "tokens", "tokens/s", "x plain")
    for name, rate in rates.items():
        table.add_row(name, f"{tokens[name]:,}", f"{rate:,.1f}", f"{rate / plain:.2f}")
    console = Console(width=110)
    facts = {"prompts": len(prompts), "answers to each": len(settings.used_seeds), "new tokens": options.new_tokens}
    facts |= {"answers at once": options.answers_at_once, "vocabulary": vocab, "device": str(model.device)}
    facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    console.print(table)
    result = {"setting": facts, "tokens": tokens, "tokens_per_second": rates}
    print(json.dumps({**result, "times_plain": rates["simpo generate"] / plain}))


@torch.inference_mode()
def _spread(model: Any) -> None:
    logits = model(torch.arange(8, device=model.device)[None]).logits.float()
    model.lm_head.weight.mul_(_SPREAD / logits.std())


def _ours(model: Any, prompts: list[list[int]], settings: GenerateSettings, vocabulary: int) -> int:
    keyed = [Prompt([{"role": "user", "content": str(number)}]) for number in range(len(prompts))]
    ids = {prompt.hash: row for prompt, row in zip(keyed, prompts, strict=True)}
    model.generation_config.eos_token_id = None
    words = Tokenizer(WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    engine = TransformersEngine(model, tokenizer, ids, [], settings)
    groups = engine.answers(keyed, [False] * len(keyed))
    return sum(answer.tokens or 0 for group in groups for _, answers in group for answer in answers)


@torch.inference_mode()
def _plain(model: Any, prompts: list[list[int]], settings: GenerateSettings) -> int:
    count, made = len(settings.used_seeds), 0
    at_once = max(1, settings.batch_size // count)
    for start in range(0, len(prompts), at_once):
        rows = prompts[start : start + at_once]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_new_tokens=settings.max_new_tokens,
            num_return_sequences=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        made += output[:, width:].numel()
    return made
