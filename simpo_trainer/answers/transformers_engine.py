"""Answers by transformers' `generate`, in batches that depend on the set of prompts alone."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import SimPOError
from ..recipe.answer_keys import GenerateSettings
from .requests import Answer, Answered, Prompt, hash_of
from .sampling import KeyedSampling


class TransformersEngine:
    """An engine in this process, on its accelerator if there is one.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        ids: the token ids of each prompt, by its hash.
        end_ids: ids that end an answer, beside those of the model's generation config.
        settings: how to sample.
        positions: of the model; None where they are unknown.
    """

    promise = (
        "The same prompts, settings, seeds and model give the same answers on the same kind of machine with the same "
        "versions, in whatever order the prompts come and however often the work was interrupted. Another batch_size "
        "changes an answer only where it changes the rounding of a logit."
    )

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        ids: dict[str, list[int]],
        end_ids: Sequence[int],
        settings: GenerateSettings,
        positions: int | None = None,
    ) -> None:
        self._model: Any = model.eval()
        self._tokenizer = tokenizer
        self._ids = ids
        self._settings = settings
        self._positions = positions
        self._end_ids = sorted({*end_ids, *_listed(model.generation_config.eos_token_id)})
        self._pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        if not hasattr(model, "hf_device_map"):
            self._model.to(PartialState().device)

    def answers(self, prompts: Sequence[Prompt], is_done: Sequence[bool]) -> Iterator[list[Answered]]:
        """Yields the answers of a batch of prompts at a time, the longest prompts first.

        Raises:
            SimPOError: the memory is too small for a batch.
        """
        done = {prompt.hash for prompt, it_is in zip(prompts, is_done, strict=True) if it_is}
        for batch in self._batches(prompts):
            if left := [prompt for prompt in batch if prompt.hash not in done]:
                yield self._answered(left)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Yields prompts that have equal limits; a prompt's answers are all in one batch."""
        size = max(1, self._settings.batch_size // len(self._settings.used_seeds))
        ordered = sorted(prompts, key=lambda prompt: (-len(self._ids[prompt.hash]), prompt.hash))
        for _, group in groupby(ordered, self._limit):
            alike = list(group)
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    def _limit(self, prompt: Prompt) -> int:
        """Returns the most tokens of an answer: those of the settings, or the positions that the prompt leaves."""
        room = self._positions - len(self._ids[prompt.hash]) if self._positions else self._settings.max_new_tokens
        return min(self._settings.max_new_tokens, room)

    def _answered(self, prompts: list[Prompt]) -> list[Answered]:
        seeds = self._settings.used_seeds
        rows = [(prompt, seed) for prompt in prompts for seed in seeds]
        try:
            found = self._generated(rows)
        except torch.OutOfMemoryError as error:
            raise SimPOError(
                f"The memory is too small for {len(rows)} answers at once. Lower batch_size (now "
                f"{self._settings.batch_size}) or max_new_tokens; what was finished before is kept."
            ) from error
        answers = [self._answer(ids) for ids in found]
        return [(prompt, answers[i * len(seeds) : (i + 1) * len(seeds)]) for i, prompt in enumerate(prompts)]

    @torch.inference_mode()
    def _generated(self, rows: list[tuple[Prompt, int]]) -> list[list[int]]:
        """Returns the new ids of each row, the end token included."""
        given = [self._ids[prompt.hash] for prompt, _ in rows]
        width, device = max(map(len, given)), self._model.device
        padded = torch.tensor([[self._pad_id] * (width - len(ids)) + ids for ids in given], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in given], device=device)
        processors = []
        if self._settings.temperature > 0:
            keys = torch.tensor([noise_key(prompt, seed) for prompt, seed in rows], device=device)
            processors.append(KeyedSampling(keys, width, self._settings.temperature, self._settings.top_p))
        # Whole: what is not set here, `generate` would take from the model's own (its penalties, its temperature).
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._limit(rows[0][0]),
            eos_token_id=self._end_ids or None,
            pad_token_id=self._pad_id,
        )
        self._model.generation_config = config
        if isinstance(self._model, PeftModel):  # some kinds of it read that of the base
            base: Any = self._model.get_base_model()
            base.generation_config = config
        output = self._model.generate(input_ids=padded, attention_mask=mask, logits_processor=processors)
        return [_until_end(ids, set(self._end_ids)) for ids in output[:, width:].tolist()]

    def _answer(self, ids: list[int]) -> Answer:
        ended = bool(ids) and ids[-1] in self._end_ids
        text: Any = self._tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        return Answer(text, "stop" if ended else "length", len(ids))


def noise_key(prompt: Prompt, seed: int) -> int:
    """Returns the number on which the noise of an answer depends, a signed one of 64 bits."""
    return int(hash_of(prompt.hash, seed)[:16], 16) - (1 << 63)


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for place, number in enumerate(ids):
        if number in ends:
            return ids[: place + 1]
    return ids


def _listed(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
