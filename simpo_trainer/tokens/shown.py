"""Token rows for the eye."""

from collections.abc import Mapping
from textwrap import indent
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .rows import is_ranked, row_answers, row_pairs


def describe_rows(dataset: Dataset | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, count: int = 2) -> str:
    """The first token rows as text, with the scored span of each answer marked."""
    rows = [dataset[index] for index in range(min(count, len(dataset)))]
    return "\n".join(render_row(row, tokenizer) for row in rows)


def render_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A token row for the eye: what is scored stands between ⟦ and ⟧, long texts lack their middle."""
    parts = [
        (f"row {row['row']}: prompt, {len(row['prompt_ids'])} tokens", _decode(row["prompt_ids"], tokenizer)),
        *(
            (f"{title}, {len(ids)} tokens scored", f"⟦{_decode(ids, tokenizer)}⟧")
            for title, ids in zip(_titles(row), row_answers(row), strict=True)
        ),
    ]
    # Headings stand at the margin, texts are indented.
    return "\n".join(f"{heading}\n{indent(text, '    ', lambda line: True)}" for heading, text in parts)


def _titles(row: Mapping[str, Any]) -> list[str]:
    """Returns a title for each answer of a row: chosen and rejected, or its index and those that it is chosen over."""
    if not is_ranked(row):
        return ["chosen", "rejected"]
    titles = []
    for place in range(len(row["response_ids"])):
        beaten = [str(rejected) for chosen, rejected in row_pairs(row) if chosen == place]
        titles.append(f"answer {place}" + (f", chosen over {', '.join(beaten)}" if beaten else ""))
    return titles


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase, shown: int = 60) -> str:
    if len(ids) <= 2 * shown:
        return str(tokenizer.decode(ids))
    return f"{tokenizer.decode(ids[:shown])} [... {len(ids) - 2 * shown} tokens ...] {tokenizer.decode(ids[-shown:])}"
