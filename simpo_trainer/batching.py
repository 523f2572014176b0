"""Token rows to a `Batch`: the one shape that scoring knows, whatever the layout of the rows.

Shapes: R rows of T tokens, A answers, N pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

import torch
from torch import Tensor

# Marks positions of `shift_labels` that predict nothing.
NOT_SCORED = -100
Layout: TypeAlias = Literal["padded", "shared_prefix", "packed", "padding_free"]


class Batch(TypedDict):
    """A micro-batch of whole pairs.

    Args:
        input_ids: token ids, (R, T).
        attention_mask: 1 for tokens, 0 for padding, (R, T); not where sequences are told apart by `position_ids` alone.
        prompt_index: prompt that each token belongs to, -1 for padding, (R, T); only where a row holds several answers.
        branch: answer number + 1 for the tokens of an answer, 0 for the shared tokens of its prompt, (R, T); with
            `prompt_index`.
        position_ids: position of each token in its own sequence, (R, T).
        shift_labels: token that each position must predict, -100 where nothing is scored, (R, T).
        response_index: answer that a scored position belongs to, (R, T); 0 elsewhere.
        num_responses: number of answers A, shape ().
        chosen: answer index of each pair's chosen side, (N,).
        rejected: answer index of each pair's rejected side, (N,).
        pair_weight: weight of each pair in loss and metrics, 1, or 0 for filler, (N,).
        pair_tokens: tokens of each pair, prompt + chosen and prompt + rejected, (N,).
        row: position of each pair in the user's data set, for messages, (N,).
        place: position of each pair in the set of token rows, (N,).
        margin: target margin that the data adds to each pair's, nats per token, (N,); only where the data gives one.
    """

    input_ids: Tensor
    attention_mask: NotRequired[Tensor]
    prompt_index: NotRequired[Tensor]
    branch: NotRequired[Tensor]
    position_ids: Tensor
    shift_labels: Tensor
    response_index: Tensor
    num_responses: Tensor
    chosen: Tensor
    rejected: Tensor
    pair_weight: Tensor
    pair_tokens: Tensor
    row: Tensor
    place: Tensor
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
    """Collate tokenized pairs into a `Batch`.

    A layout is a way to cut prompts and answers into rows. The answer's segment begins with the prompt's last token, so
    that each scored token has one position that predicts it, and lacks the answer's last token, whose prediction nobody
    reads. Rows are padded on the right.

    Args:
        pad_token_id: any valid token id; padding is told apart by `attention_mask`, never by this id.
        layout: "padded": one answer a row, chosen rows, then rejected rows. "shared_prefix": one prompt a row, its
            answers behind it, each going on from the prompt's positions. "packed": the same, all prompts in one row.
            "padding_free": every prompt + answer as a sequence of its own, all in one row, for attention that takes no mask.
    """

    pad_token_id: int = 0
    layout: Layout = "padded"

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """Collate pairs with `prompt_ids`, `chosen_ids`, `rejected_ids` and optionally `row`, `place`, `weight`, `margin`."""
        count = len(pairs)
        prompts = [
            _Prompt(number, pair["prompt_ids"], {number: pair["chosen_ids"], count + number: pair["rejected_ids"]})
            for number, pair in enumerate(pairs)
        ]
        rows = _rows(_LAYOUTS[self.layout](prompts), self.pad_token_id)
        batch = Batch(
            input_ids=rows["input_ids"],
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
            place=torch.tensor([pair.get("place", -1) for pair in pairs]),
        )
        if self.layout != "padding_free":
            batch["attention_mask"] = rows["attention_mask"]
        if self.layout in ("shared_prefix", "packed"):
            batch["prompt_index"], batch["branch"] = rows["prompt_index"], rows["branch"]
        if "margin" in pairs[0]:
            batch["margin"] = torch.tensor([float(pair["margin"]) for pair in pairs])
        return batch


@dataclass(frozen=True)
class _Prompt:
    """A prompt and its answers by their number in the batch."""

    number: int
    ids: list[int]
    answers: dict[int, list[int]]

    def shared(self) -> "_Segment":
        """The prompt without its last token, which begins each answer's segment."""
        return _Segment(self.number, 0, self.ids[:-1], 0, [NOT_SCORED] * (len(self.ids) - 1))

    def segment(self, answer: int) -> "_Segment":
        ids = self.answers[answer]
        return _Segment(self.number, answer + 1, [self.ids[-1], *ids[:-1]], len(self.ids) - 1, ids)


class _Segment(NamedTuple):
    """Consecutive tokens of one prompt or answer: ids, position of the first, and what each must predict."""

    prompt: int
    branch: int
    ids: list[int]
    start: int
    labels: list[int]


def _padded(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    answers = sorted((answer, prompt) for prompt in prompts for answer in prompt.answers)
    return [[prompt.shared(), prompt.segment(answer)] for answer, prompt in answers]


def _shared_prefix(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    return [[prompt.shared(), *map(prompt.segment, prompt.answers)] for prompt in prompts]


def _packed(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    return [[segment for row in _shared_prefix(prompts) for segment in row]]


def _padding_free(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    return [[segment for row in _padded(prompts) for segment in row]]


_LAYOUTS: dict[Layout, Callable[[Sequence[_Prompt]], list[list[_Segment]]]] = {
    "padded": _padded,
    "shared_prefix": _shared_prefix,
    "packed": _packed,
    "padding_free": _padding_free,
}


def _rows(rows: Sequence[Sequence[_Segment]], pad: int) -> dict[str, Tensor]:
    """The (R, T) tensors of a batch."""
    width = max(sum(len(segment.ids) for segment in row) for row in rows)

    def tensor(padding: int, values: Callable[[_Segment], Iterable[int]]) -> Tensor:
        lists = [[value for segment in row for value in values(segment)] for row in rows]
        return torch.tensor([line + [padding] * (width - len(line)) for line in lists])

    def constant(value: int, segment: _Segment) -> Iterable[int]:
        return repeat(value, len(segment.ids))

    return {
        "input_ids": tensor(pad, lambda segment: segment.ids),
        "attention_mask": tensor(0, lambda segment: constant(1, segment)),
        "position_ids": tensor(0, lambda segment: range(segment.start, segment.start + len(segment.ids))),
        "shift_labels": tensor(NOT_SCORED, lambda segment: segment.labels),
        "response_index": tensor(0, lambda segment: constant(max(0, segment.branch - 1), segment)),
        "prompt_index": tensor(-1, lambda segment: constant(segment.prompt, segment)),
        "branch": tensor(0, lambda segment: constant(segment.branch, segment)),
    }
