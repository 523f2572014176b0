"""Token rows to a `Batch`: the one shape that scoring knows, whatever the layout of the rows.

Shapes: R rows of T tokens, A answers, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

# Marks positions of `shift_labels` that predict nothing.
NOT_SCORED = -100


class Batch(TypedDict):
    """A micro-batch of whole pairs.

    Args:
        input_ids: token ids, (R, T).
        attention_mask: 1 for tokens, 0 for padding, (R, T).
        position_ids: position of each token in its own sequence, (R, T).
        shift_labels: token that each position must predict, -100 where nothing is scored, (R, T).
        response_index: answer that a scored position belongs to, (R, T); 0 elsewhere.
        num_responses: number of answers A, shape ().
        chosen: answer index of each pair's chosen side, (N,).
        rejected: answer index of each pair's rejected side, (N,).
        pair_weight: weight of each pair in loss and metrics, 1, or 0 for filler, (N,).
        pair_tokens: tokens of each pair, prompt + chosen and prompt + rejected, (N,).
        row: position of each pair in the user's data set, for messages, (N,).
        margin: target margin that the data adds to each pair's, nats per token, (N,); only where the data gives one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    shift_labels: Tensor
    response_index: Tensor
    num_responses: Tensor
    chosen: Tensor
    rejected: Tensor
    pair_weight: Tensor
    pair_tokens: Tensor
    row: Tensor
    margin: NotRequired[Tensor]


def count_tokens(batch: Batch) -> Tensor:
    """Pairs, tokens and scored tokens of chosen answers in a batch, each weighted by `pair_weight`, (3,) in float64."""
    weight = batch["pair_weight"].double()
    scored = batch["response_index"][batch["shift_labels"] != NOT_SCORED]
    lengths = torch.bincount(scored, minlength=int(batch["num_responses"]))
    return torch.stack(
        [weight.sum(), weight @ batch["pair_tokens"].double(), weight @ lengths[batch["chosen"]].double()]
    )


@dataclass(frozen=True)
class PairCollator:
    """Collate tokenized pairs into a `Batch` in the padded layout: one answer a row, chosen rows, then rejected rows.

    A row holds `prompt + answer` without the answer's last token, whose prediction nobody reads; the position before
    each answer token predicts it. Rows are padded on the right.

    Args:
        pad_token_id: any valid token id; padding is told apart by `attention_mask`, never by this id.
    """

    pad_token_id: int = 0

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """Collate pairs with `prompt_ids`, `chosen_ids`, `rejected_ids` and optionally `row`, `weight`, `margin`."""
        prompts = [pair["prompt_ids"] for pair in pairs] * 2
        answers = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
        count = len(pairs)
        width = max(len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, answers, strict=True))
        rows = _padded_rows(prompts, answers, width, self.pad_token_id)
        batch = Batch(
            input_ids=rows["input_ids"],
            attention_mask=rows["attention_mask"],
            position_ids=rows["position_ids"],
            shift_labels=rows["shift_labels"],
            response_index=rows["response_index"],
            num_responses=torch.tensor(2 * count),
            chosen=torch.arange(count),
            rejected=torch.arange(count, 2 * count),
            pair_weight=torch.tensor([float(pair.get("weight", 1.0)) for pair in pairs]),
            pair_tokens=torch.tensor(
                [2 * len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs]
            ),
            row=torch.tensor([pair.get("row", -1) for pair in pairs]),
        )
        if "margin" in pairs[0]:
            batch["margin"] = torch.tensor([float(pair["margin"]) for pair in pairs])
        return batch


def _padded_rows(prompts: list[list[int]], answers: list[list[int]], width: int, pad: int) -> dict[str, Tensor]:
    shape = (len(prompts), width)
    rows = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.arange(width).repeat(len(prompts), 1),
        "shift_labels": torch.full(shape, NOT_SCORED),
        "response_index": torch.zeros(shape, dtype=torch.long),
    }
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer) - 1
        scored = slice(len(prompt) - 1, end)
        rows["input_ids"][number, :end] = torch.tensor(prompt + answer[:-1])
        rows["attention_mask"][number, :end] = 1
        rows["shift_labels"][number, scored] = torch.tensor(answer)
        rows["response_index"][number, scored] = number
    return rows
