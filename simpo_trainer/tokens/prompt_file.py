"""Prompts from a file as token ids, for the answers that a model writes while it trains."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import SimPOError, first_line
from .templates import TEMPLATE_FAILURES


def read_prompt_ids(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Returns the token ids of the prompts in a file of JSON Lines, with the generation header.

    Args:
        file: each line an object whose `prompt` is a list of messages, or a text. A text is the user's message where
            the tokenizer has a chat template, and stands as it is without one.
        tokenizer: of the model.

    Raises:
        SimPOError: the file cannot be read, or a line holds no prompt that can be used.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SimPOError(
            f"sample_prompts is {file}, which cannot be read: {first_line(error)}. Give a number of prompts, or a file "
            'of JSON Lines: {"prompt": "..."}.'
        ) from None
    found = [_ids(f"{file}, line {number}", line, tokenizer) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise SimPOError(
            f'sample_prompts is {file}, which holds no prompt. Write one on each line: {{"prompt": "..."}}.'
        )
    return found


def _ids(place: str, line: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SimPOError(f"{place}: not valid JSON ({error}). Write one object on each line.") from None
    prompt: Any = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str | list) or not prompt:
        raise SimPOError(f'{place}: there is no prompt. Each line is an object: {{"prompt": "..."}}, or with messages.')
    if isinstance(prompt, str):
        if not tokenizer.chat_template:
            return list(tokenizer(prompt)["input_ids"])
        prompt = [{"role": "user", "content": prompt}]
    try:
        text: Any = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_FAILURES as error:
        raise SimPOError(f"{place}: the chat template refuses the prompt: {first_line(error)}. Correct it.") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
