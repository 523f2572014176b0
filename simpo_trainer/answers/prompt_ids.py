"""Prompts to token ids: by the model's chat template, as a trained prompt is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.messages import settle_system_messages
from ..errors import first_line
from ..log import get_logger
from ..tokens.settings import RowSettings
from ..tokens.templates import TEMPLATE_FAILURES, probe_template
from ..tokens.tokenization import opening_messages
from .requests import Prompt

logger = get_logger(__name__)


@dataclass
class PromptIds:
    """The token ids of prompts, by their hashes; prompts that have none are counted by the reason.

    `end_ids` are the ids that end an answer by the chat template and by the tokenizer.
    """

    ids: dict[str, list[int]]
    end_ids: list[int]
    refused: int
    too_long: int


def prompt_ids(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: RowSettings, positions: int | None
) -> PromptIds:
    """Returns the token ids of prompts, with the generation header.

    Args:
        prompts: the conversations.
        tokenizer: with the chat template to use.
        settings: those that say what becomes of system messages.
        positions: of the model; prompts that leave no room for an answer are left out. None where they are unknown.

    Raises:
        SimPOError: there is no chat template, or it cannot be used.
    """
    opening = opening_messages(tokenizer) if settings.auto_insert_empty_system_msg else []
    turn_end = probe_template(tokenizer, prompts[0].template_kwargs if prompts else {}, opening)
    ends = {turn_end.token_id, tokenizer.eos_token_id} - {None}
    found = PromptIds({}, sorted(int(number) for number in ends if number is not None), 0, 0)
    for prompt in prompts:
        messages = settle_system_messages(prompt.messages, settings.system_messages, opening)
        try:
            text: Any = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **prompt.template_kwargs
            )
        except TEMPLATE_FAILURES as error:
            found.refused += 1
            if found.refused == 1:
                logger.warning(f"The chat template refuses a prompt: {first_line(error)}.")
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if positions is not None and len(ids) >= positions:
            found.too_long += 1
        else:
            found.ids[prompt.hash] = list(ids)
    if found.refused:
        logger.warning(
            f"Left out {found.refused} prompts that the chat template refuses. If it refuses system messages, set "
            "system_messages: merge or drop."
        )
    if found.too_long:
        logger.warning(f"Left out {found.too_long} prompts that fill all {positions} positions of the model.")
    return found
