"""Token rows to a `Batch`: the one shape that scoring knows, whatever the layout of the rows.

Shapes: R rows of T tokens, A answers, N pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from ..tokens.rows import row_answers, row_margins, row_pairs

# Marks positions of `shift_labels` that predict nothing.
NOT_SCORED = -100
Layout: TypeAlias = Literal["padded", "shared_prefix", "packed", "padding_free"]


class Batch(TypedDict):
    """A micro-batch of whole pairs, each of two answers to one prompt; ranked answers make several pairs a prompt.

    Args:
        input_ids: token ids, (R, T).
        attention_mask: 1 for tokens, 0 for padding, (R, T); absent where `position_ids` alone separate sequences.
        prompt_index: prompt that each token belongs to, -1 for padding, (R, T); only where a row holds several answers.
        branch: answer number + 1 for the tokens of an answer, 0 for the shared tokens of its prompt, (R, T); with
            `prompt_index`.
        position_ids: position of each token in its own sequence, (R, T).
        shift_labels: token that each position must predict, -100 where nothing is scored, (R, T).
        response_index: answer that a scored position belongs to, (R, T); 0 elsewhere.
        num_responses: number of answers A, shape (), or a plain number.
        chosen: answer index of each pair's chosen side, (N,).
        rejected: answer index of each pair's rejected side, (N,).
        pair_weight: weight of each pair in loss and metrics, 1, or 0 for filler, (N,).
        pair_tokens: tokens of each row's answers, each with its prompt, at the row's first pair, 0 at its others, (N,).
        row: position of each pair's row in the user's data set, for messages, (N,).
        index: index of each pair's row in the set of token rows, (N,).
        margin: target margin that the data adds to each pair's, nats per token, (N,); only where the data gives one.
        scored: indices in the flattened `shift_labels` where something is scored, (S,); see :func:`ready_to_score`.
        segments: prompt, branch and number of tokens of each run of equal ones in the only row of a batch that has
            `branch`; plain numbers, see :func:`ready_to_score`.
    """

    input_ids: Tensor
    attention_mask: NotRequired[Tensor]
    prompt_index: NotRequired[Tensor]
    branch: NotRequired[Tensor]
    position_ids: Tensor
    shift_labels: Tensor
    response_index: Tensor
    num_responses: Tensor | int
    chosen: Tensor
    rejected: Tensor
    pair_weight: Tensor
    pair_tokens: Tensor
    row: Tensor
    index: Tensor
    margin: NotRequired[Tensor]
    scored: NotRequired[Tensor]
    segments: NotRequired[tuple[tuple[int, int, int], ...]]


def ready_to_score(batch: Batch) -> Batch:
    """Add `scored` and `segments`, and make the number of answers a plain one.

    To be called while the batch lies on the CPU, because scoring would wait for the accelerator to find them; and after
    its collator, because one that moves columns would make them wrong.
    """
    scored = (batch["shift_labels"].flatten() != NOT_SCORED).nonzero().flatten()
    ready: Batch = {**batch, "scored": scored, "num_responses": int(batch["num_responses"])}
    if "branch" in batch and len(batch["branch"]) == 1:
        ready["segments"] = segments_of(batch["prompt_index"], batch["branch"])
    return ready


def segments_of(prompt_index: Tensor, branch: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Returns `segments` of a batch with a single row; both arguments are (1, T)."""
    values, lengths = torch.unique_consecutive(torch.cat([prompt_index, branch]), dim=1, return_counts=True)
    return tuple(zip(*values.tolist(), lengths.tolist(), strict=True))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch, ready to score, on its way to an accelerator; nothing waits for that, now or in scoring."""
    if batch["shift_labels"].is_cpu:
        batch = ready_to_score(batch)
    if device.type != "cuda":
        return batch
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    return cast(Batch, batch | {name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def scored_places(batch: Batch) -> Tensor:
    """Returns `scored` of a batch, which is found now where the batch lacks it."""
    return batch["scored"] if "scored" in batch else ready_to_score(batch)["scored"]


def count_tokens(batch: Batch) -> Tensor:
    """Returns pairs, tokens and scored tokens of chosen answers, each weighted by `pair_weight`, (3,) in float64."""
    weight = batch["pair_weight"].double()
    answers = batch["response_index"].flatten()[scored_places(batch)]
    lengths = torch.bincount(answers, minlength=int(batch["num_responses"]))
    return torch.stack(
        [weight.sum(), weight @ batch["pair_tokens"].double(), weight @ lengths[batch["chosen"]].double()]
    )


@dataclass(frozen=True)
class PairCollator:
    """Collate token rows, pairs or prompts with ranked answers, into a `Batch`.

    A layout is a way to cut prompts and answers into rows. The answer's segment begins with the prompt's last token, so
    that each scored token has one position that predicts it, and lacks the answer's last token, whose prediction nobody
    reads. Rows are padded on the right.

    Answers are numbered by their index in their token row, then by row: all chosen ones of pairs, then all rejected
    ones.

    Args:
        pad_token_id: any valid token id; `attention_mask` marks padding, never this id.
        layout: "padded": one answer a row, in the order of their numbers. "shared_prefix": one prompt a row, its
            answers behind it, each going on from the prompt's positions. "packed": the same, all prompts in one row.
            "padding_free": every prompt + answer as a sequence of its own, all in one row, for attention that takes no
            mask.
    """

    pad_token_id: int = 0
    layout: Layout = "padded"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate token rows.

        Args:
            rows: `prompt_ids`, and `chosen_ids` and `rejected_ids`, or `response_ids` with the index of one of them in
                `chosen` and `rejected` for each pair; optionally `row`, `index`, `weight`, and `margin`, one for each
                pair.
        """
        answers = [row_answers(row) for row in rows]
        numbers = _numbers([len(found) for found in answers])
        prompts = [
            _Prompt(number, _array(row["prompt_ids"]), dict(zip(numbers[number], map(_array, found), strict=True)))
            for number, (row, found) in enumerate(zip(rows, answers, strict=True))
        ]
        pairs = [row_pairs(row) for row in rows]
        sides = [
            (own[chosen], own[rejected]) for own, both in zip(numbers, pairs, strict=True) for chosen, rejected in both
        ]
        counts = torch.tensor([len(both) for both in pairs])

        def by_pair(values: Sequence[float]) -> Tensor:
            return torch.tensor(values).repeat_interleave(counts)

        tokens = [[prompt.tokens] + [0] * (len(both) - 1) for prompt, both in zip(prompts, pairs, strict=True)]
        fields = _fields(_LAYOUTS[self.layout](prompts), self.pad_token_id)
        batch = Batch(
            input_ids=fields["input_ids"],
            position_ids=fields["position_ids"],
            shift_labels=fields["shift_labels"],
            response_index=fields["response_index"],
            num_responses=torch.tensor(sum(map(len, answers))),
            chosen=torch.tensor([chosen for chosen, _ in sides]),
            rejected=torch.tensor([rejected for _, rejected in sides]),
            pair_weight=by_pair([float(row.get("weight", 1.0)) for row in rows]),
            pair_tokens=torch.tensor([count for row in tokens for count in row]),
            row=by_pair([row.get("row", -1) for row in rows]),
            index=by_pair([row.get("index", -1) for row in rows]),
        )
        if self.layout != "padding_free":
            batch["attention_mask"] = fields["attention_mask"]
        if self.layout in ("shared_prefix", "packed"):
            batch["prompt_index"], batch["branch"] = fields["prompt_index"], fields["branch"]
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([margin for row in rows for margin in row_margins(row)])
        return batch


def _numbers(counts: Sequence[int]) -> list[list[int]]:
    """Returns the numbers in a batch of each row's answers, given the count of each row: first answers first."""
    numbers: list[list[int]] = [[] for _ in counts]
    order = (row for index in range(max(counts)) for row, count in enumerate(counts) if index < count)
    for number, row in enumerate(order):
        numbers[row].append(number)
    return numbers


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)


@dataclass(frozen=True)
class _Prompt:
    """A prompt and its answers by their number in the batch."""

    number: int
    ids: np.ndarray
    answers: dict[int, np.ndarray]

    @property
    def tokens(self) -> int:
        """Returns the number of tokens of all answers, each with the prompt."""
        return len(self.answers) * len(self.ids) + sum(map(len, self.answers.values()))

    @cached_property
    def shared(self) -> "_Segment":
        """Returns the prompt without its last token, which begins each answer's segment."""
        return _Segment(self.number, 0, self.ids[:-1], 0, np.full(len(self.ids) - 1, NOT_SCORED))

    def segment(self, answer: int) -> "_Segment":
        ids = self.answers[answer]
        return _Segment(self.number, answer + 1, np.append(self.ids[-1], ids[:-1]), len(self.ids) - 1, ids)


class _Segment(NamedTuple):
    """Consecutive tokens of one prompt or answer: ids, position of the first, and what each must predict."""

    prompt: int
    branch: int
    ids: np.ndarray
    start: int
    labels: np.ndarray


def _padded(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    answers = {answer: prompt for prompt in prompts for answer in prompt.answers}
    return [[answers[answer].shared, answers[answer].segment(answer)] for answer in sorted(answers)]


def _shared_prefix(prompts: Sequence[_Prompt]) -> list[list[_Segment]]:
    return [[prompt.shared, *map(prompt.segment, prompt.answers)] for prompt in prompts]


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


def _fields(rows: Sequence[Sequence[_Segment]], pad: int) -> dict[str, Tensor]:
    """Returns the (R, T) tensors of a batch."""
    width = max(sum(len(segment.ids) for segment in row) for row in rows)
    padding = {
        "input_ids": pad,
        "attention_mask": 0,
        "position_ids": 0,
        "shift_labels": NOT_SCORED,
        "response_index": 0,
        "prompt_index": -1,
        "branch": 0,
    }
    fields = {name: np.full((len(rows), width), value) for name, value in padding.items()}
    for number, row in enumerate(rows):
        end = 0
        for segment in row:
            start, end = end, end + len(segment.ids)
            values = {
                "input_ids": segment.ids,
                "attention_mask": 1,
                "position_ids": np.arange(segment.start, segment.start + len(segment.ids)),
                "shift_labels": segment.labels,
                "response_index": max(0, segment.branch - 1),
                "prompt_index": segment.prompt,
                "branch": segment.branch,
            }
            for name, value in values.items():
                fields[name][number, start:end] = value
    return {name: torch.from_numpy(values) for name, values in fields.items()}
