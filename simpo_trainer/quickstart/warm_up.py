"""The warm-up: a short plain training run that teaches the toy model both good and bad answers."""

import math
import time
from collections.abc import Callable
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .tasks import draw

BATCH_SIZE = 32
PEAK_LEARNING_RATE = 1e-3
RISING_STEPS = 30
STEPS_BETWEEN_REPORTS = 100
IGNORED = -100


def warm_up(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: Random, steps: int, report: Callable[[str], None]
) -> None:
    """Train `model` in place for `steps` batches of new items of the training side.

    Each item has its right or its bad answer with equal probability, so the model has no reason to prefer either. The
    loss is the mean of -log p (nats per token) over the answers' tokens, end token included. Every token of a batch has
    the same weight: a mean per answer first would favour short answers, which are the good ones.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_peak(step, steps))
    model.train()
    start = time.monotonic()
    for step in range(1, steps + 1):
        input_ids, labels = make_batch(tokenizer, rng)
        # The padding is on the right, where causal attention hides it from all other tokens.
        logits = model(input_ids=input_ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % STEPS_BETWEEN_REPORTS == 0 or step == steps:
            seconds = time.monotonic() - start
            report(f"warm-up: step {step} of {steps}, {seconds:.0f} s, loss {loss.item():.2f} nats per token")
    model.eval()


def make_batch(tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and labels of new items, both (BATCH_SIZE, longest), padded on the right.

    Labels are the answers' token ids, and IGNORED at prompts and padding.
    """
    prompts, texts = [], []
    for _ in range(BATCH_SIZE):
        item = draw(rng, held_out=False)
        answer = item.right if rng.random() < 0.5 else item.bad
        asked = [{"role": "user", "content": item.instruction}]
        prompts.append(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
        texts.append(f"{prompts[-1]}{answer}{tokenizer.eos_token}")
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    for row, prompt in enumerate(tokenizer(prompts)["input_ids"]):
        labels[row, : len(prompt)] = IGNORED
    return batch["input_ids"], labels


def _share_of_peak(step: int, steps: int) -> float:
    """Returns the learning rate of a step as a share of its peak: a short rise times half a cosine down to zero."""
    return min(1.0, (step + 1) / RISING_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
