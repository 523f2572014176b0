"""One batch of preference rows to token ids: the function that `tokenization.tokenize_preferences` maps over a set."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Features
from transformers import PreTrainedTokenizerBase

from .drops import RowDropped
from .messages import (
    Message,
    check_messages,
    explicit_prompt,
    row_template_kwargs,
    settle_system_messages,
    without_filled_keys,
)
from .templates import PairTexts, TurnEnd, render_conversation

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
# Characters behind which a text may be tokenized as if it went on from another.
_ANCHORS = "\n.a0"


@dataclass(frozen=True)
class PairTokenizer:
    """The function that `Dataset.map` runs, with all it needs; picklable for several processes.

    `turn_end` is None where no row is a conversation; `prefix_ids` are the special tokens that the tokenizer puts in
    front of plain text, usually BOS; `opening` are messages in front of each conversation without a system message.
    `inputs` are the types of the rows' columns, None where a stream does not know them.
    """

    tokenizer: PreTrainedTokenizerBase
    turn_end: TurnEnd | None
    prefix_ids: list[int]
    features: Features
    max_length: int
    max_prompt_length: int
    truncate: bool
    truncation_mode: Literal["keep_end", "keep_start"]
    system_messages: Literal["keep", "merge", "drop"]
    opening: list[Message]
    inputs: Mapping[str, Any] | None

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """The columns of `features` for a batch; a dropped row has no ids and a reason."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        texts = [caught(self._texts, row) for row in rows]
        pairs = iter(self._encode([pair for pair in texts if isinstance(pair, PairTexts)]))
        columns: dict[str, list] = {name: [] for name in self.features}
        for index, row, outcome in zip(indices, rows, texts, strict=True):
            if isinstance(outcome, PairTexts):
                done = caught(self._finish, *next(pairs), isinstance(row["chosen"], list))
                outcome = done if isinstance(done, RowDropped) else {**done, **_notes(outcome)}
            if isinstance(outcome, RowDropped):
                outcome = {**dict.fromkeys(TOKEN_COLUMNS, []), "reason": outcome.reason, "detail": outcome.detail}
            outcome |= {"row": index, "margin": row.get("margin")}
            for name, values in columns.items():
                values.append(outcome.get(name))
        return columns

    def _texts(self, row: Mapping[str, Any]) -> PairTexts:
        row = without_filled_keys(row, self.inputs)
        prompt, chosen, rejected = explicit_prompt(row)
        if isinstance(chosen, list):
            if self.turn_end is None:  # possible in a stream, which is judged by its first row
                raise RowDropped("wrong_type", "a conversation among texts")
            check_messages(prompt, chosen, rejected)
            prompt = settle_system_messages(prompt, self.system_messages, self.opening)
            return render_conversation(
                self.tokenizer,
                self.turn_end,
                (prompt, chosen, rejected),
                row_template_kwargs(row),
                with_header=self.truncation_mode == "keep_start",
            )
        if not chosen.strip() or not rejected.strip():
            raise RowDropped("empty_answer")
        return PairTexts(prompt, chosen, rejected)

    def _encode(self, pairs: list[PairTexts]) -> Iterable[tuple[list[int], list[int], list[int], int]]:
        """Ids of prompt, chosen and rejected of each pair, as the tokenizer splits the texts; the header's length.

        What stands before the last special token of a prompt is tokenized once and not again with each answer.
        """
        splitting = [token for token in _splitting_tokens(self.tokenizer) if pairs and token in pairs[0].prompt]
        starts = [max([0, *(pair.prompt.rfind(token) for token in splitting)]) for pair in pairs]
        heads = encode_texts(self.tokenizer, [p.prompt[:start] for p, start in zip(pairs, starts, strict=True)])
        prompts = [pair.prompt[start:] for pair, start in zip(pairs, starts, strict=True)]
        ids = encode_texts(self.tokenizer, prompts)
        chosen = self._encode_answers(ids, prompts, [pair.chosen for pair in pairs])
        rejected = self._encode_answers(ids, prompts, [pair.rejected for pair in pairs])
        whole = [head + tail for head, tail in zip(heads, ids, strict=True)]
        return zip(whole, chosen, rejected, self._header_lengths(pairs, whole), strict=True)

    def _header_lengths(self, pairs: list[PairTexts], prompt_ids: list[list[int]]) -> list[int]:
        """Tokens of each prompt that hold what stands behind its last message's text."""
        if self.truncation_mode == "keep_end":
            return [0] * len(pairs)  # the header is at the end and never cut
        starts = encode_texts(self.tokenizer, [pair.prompt[: len(pair.prompt) - len(pair.header)] for pair in pairs])
        return [len(ids) - len(os.path.commonprefix([ids, own])) for ids, own in zip(prompt_ids, starts, strict=True)]

    def _encode_answers(self, prompt_ids: list[list[int]], prompts: list[str], answers: list[str]) -> list[list[int]]:
        """Ids of the answers behind their prompts.

        Where a token would reach over the boundary, the prompt keeps the ids it has at inference, and the answer is
        tokenized on its own.
        """
        fulls = encode_texts(self.tokenizer, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
        merged = [i for i, (full, ids) in enumerate(zip(fulls, prompt_ids, strict=True)) if full[: len(ids)] != ids]
        answer_ids = [full[len(ids) :] for full, ids in zip(fulls, prompt_ids, strict=True)]
        for i, ids in zip(merged, _encode_continuations(self.tokenizer, [answers[i] for i in merged]), strict=True):
            answer_ids[i] = ids
        return answer_ids

    def _finish(
        self,
        prompt_ids: list[int],
        chosen_ids: list[int],
        rejected_ids: list[int],
        header_length: int,
        conversational: bool,
    ) -> dict[str, Any]:
        """The row of a pair: special tokens set, fitted to length."""
        if not conversational:
            prompt_ids = self.prefix_ids + prompt_ids
        bos_id = self.tokenizer.bos_token_id
        if not prompt_ids:
            if bos_id is None:
                raise RowDropped("no_prompt")
            prompt_ids = [bos_id]
        while prompt_ids[:2] == [bos_id, bos_id]:  # one from the text or template, one from the tokenizer
            prompt_ids = prompt_ids[1:]
        end_id = self.turn_end.token_id if conversational and self.turn_end else self.tokenizer.eos_token_id
        whole = prompt_ids, _ended(chosen_ids, end_id), _ended(rejected_ids, end_id)
        if whole[1] == whole[2]:
            raise RowDropped("identical_answers")
        length = pair_length(*whole)
        if length > self.max_length and not self.truncate:
            raise RowDropped("overlong", f"{length} tokens")
        fitted = self._fitted(*whole, header_length)
        if fitted[1] == fitted[2]:
            raise RowDropped("identical_after_truncation")
        cuts = [len(after) < len(before) for before, after in zip(whole, fitted, strict=True)]
        return {**dict(zip(TOKEN_COLUMNS, fitted, strict=True)), "cut": cuts, "length": pair_length(*fitted)}

    def _fitted(
        self, prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], header_length: int
    ) -> tuple[list[int], list[int], list[int]]:
        """The pair cut to length, by the end of the prompt that is kept."""
        if self.truncation_mode == "keep_end":
            bos_id = self.tokenizer.bos_token_id
            kept_start = 1 if prompt_ids[0] == bos_id and self.max_prompt_length > 1 else 0
        else:
            kept_start = max(0, self.max_prompt_length - header_length)
        return fit_to_length(prompt_ids, chosen_ids, rejected_ids, self.max_length, self.max_prompt_length, kept_start)


def caught(function: Any, *args: Any) -> Any:
    """The function's result, or the `RowDropped` that it raised."""
    try:
        return function(*args)
    except RowDropped as dropped:
        return dropped


def _notes(texts: PairTexts) -> dict[str, str | None]:
    """What the report should say of a pair that is kept."""
    return {"second": texts.second or None, "ignored": texts.ignored or None}


def pair_length(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int]) -> int:
    return len(prompt_ids) + max(len(chosen_ids), len(rejected_ids))


def _ended(answer_ids: list[int], end_id: int | None) -> list[int]:
    """The answer with exactly one end token, its last."""
    if end_id is None:
        if not answer_ids:
            raise RowDropped("empty_answer")
        return answer_ids
    if answer_ids[-1:] != [end_id]:
        answer_ids = [*answer_ids, end_id]
    if len(answer_ids) == 1:
        raise RowDropped("empty_answer")
    if answer_ids.count(end_id) > 1:
        raise RowDropped("end_token_inside")
    return answer_ids


def fit_to_length(
    prompt_ids: list[int],
    chosen_ids: list[int],
    rejected_ids: list[int],
    max_length: int,
    max_prompt_length: int,
    kept_start: int,
) -> tuple[list[int], list[int], list[int]]:
    """Cut a pair to `max_length` tokens by the rule of SimPO's official code.

    Only where prompt + longer answer exceed `max_length`: the prompt is cut to `max_prompt_length` tokens, its first
    `kept_start` and its last; if that does not suffice, both answers are cut to their first
    `max_length - max_prompt_length`.
    """
    longer = max(len(chosen_ids), len(rejected_ids))
    if len(prompt_ids) + longer > max_length and len(prompt_ids) > max_prompt_length:
        prompt_ids = prompt_ids[:kept_start] + prompt_ids[len(prompt_ids) - max_prompt_length + kept_start :]
    if len(prompt_ids) + longer > max_length:
        room = max_length - max_prompt_length
        chosen_ids, rejected_ids = chosen_ids[:room], rejected_ids[:room]
    return prompt_ids, chosen_ids, rejected_ids


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose: no warning that a text is longer than the model's window; it is cut later.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens at which a text is divided before anything else, so that the parts may be tokenized apart."""
    if not tokenizer.is_fast:  # what a tokenizer written in Python does around its special tokens is its own affair
        return []
    added = tokenizer.added_tokens_decoder.values()
    return [t.content for t in added if t.special and not (t.lstrip or t.rstrip or t.normalized or t.single_word)]


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts that go on from others, with no space put before their first word.

    Each is tokenized behind an anchor: a special token or, where a space is put even there, an ordinary character. An
    anchor will do with which no token merges, and behind which the ids say the text and nothing else.
    """
    special = _splitting_tokens(tokenizer)[:1]
    found: dict[int, list[int]] = {}
    unproven: dict[int, list[int]] = {}  # of a text that no ids say, as one with a letter that the tokenizer lacks
    for anchor in [*special, *_ANCHORS]:
        start = encode_texts(tokenizer, [anchor])[0]
        left = [i for i in range(len(texts)) if i not in found]
        for i, ids in zip(left, encode_texts(tokenizer, [anchor + texts[i] for i in left]), strict=True):
            if ids[: len(start)] == start:
                said = _said(tokenizer, ids) == _said(tokenizer, start) + texts[i]
                (found if said else unproven)[i] = ids[len(start) :]
    alone = encode_texts(tokenizer, [] if len(found | unproven) == len(texts) else texts)
    return [found[i] if i in found else unproven[i] if i in unproven else alone[i] for i in range(len(texts))]


def _said(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text; those behind it are no part of a prompt."""
    bare = encode_texts(tokenizer, ["a"])[0]
    full = tokenizer(["a"], return_attention_mask=False)["input_ids"][0]
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]
