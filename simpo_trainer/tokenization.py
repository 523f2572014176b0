"""Preference rows to token ids: tokenize, fit to length, drop what cannot teach, and say what was done.

An answer is scored from the first token behind the prompt to its end token. It is told from the prompt by position,
never by the value of an id: a padding token may well be the end token too.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from textwrap import indent
from typing import Any, Literal

import datasets
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from .drops import Dropped, DropReport, RowDropped
from .errors import SimPOError
from .log import get_logger
from .preferences import check_columns, check_margins
from .templates import (
    PairTexts,
    TurnEnd,
    check_messages,
    explicit_prompt,
    probe_template,
    render_conversation,
    row_template_kwargs,
)

logger = get_logger(__name__)

# Part of the cache's key: raise it with every change of this file or of templates.py that changes token ids.
CODE_VERSION = 1

_INPUT_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin")
TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
# What the cached rows say beside their ids; read for the report, then removed.
_NOTES = Features(
    {
        "length": Value("int32"),
        "reason": Value("string"),
        "detail": Value("string"),
        "cut": List(Value("bool")),  # of prompt, chosen and rejected
    }
)
_FEATURES = Features({"row": Value("int64"), **{name: List(Value("int32")) for name in TOKEN_COLUMNS}, **_NOTES})
# Columns without a `prompt` beside them that suggest that the prompt is not implicit but called otherwise.
_PROMPT_LIKE = {"question", "instruction", "query", "input"}


def tokenize_preferences(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int,
    overlong: Literal["truncate", "drop", "error"],
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, DropReport]:
    """Token ids of preference pairs, and a report of the pairs that were cut or left out.

    Args:
        dataset: columns `chosen`, `rejected` and, unless implicit, `prompt`: strings or message lists. Further columns
            that are read: `tools` and `chat_template_kwargs` for the chat template, `margin` (>= 0) for the loss.
        max_length: longest prompt + answer, in tokens.
        max_prompt_length: length to which the prompt of an overlong pair is cut; below `max_length`.
        overlong: `fit_to_length` such pairs, drop them, or stop.
        num_proc: processes that tokenize; None means this one.
        name: what messages call the set.

    Returns:
        A dataset in the order of `dataset` with the columns `row` (index in `dataset`), `prompt_ids`, `chosen_ids`,
        `rejected_ids` (answers with their end token) and, if given, `margin`; and the report. The work is cached beside
        the files of `dataset`, under a key made of its fingerprint, the tokenizer and the settings.

    Raises:
        SimPOError: columns or margins are not usable, the chat template is missing or broken, more than half of the
            pairs would be left out, or a pair is too long and `overlong` is "error".
    """
    check_columns(dataset, name)
    if len(dataset) == 0:
        raise SimPOError(f"{name}: the set has no rows; it needs at least one preference pair.")
    check_margins(dataset, name)
    features = Features(_FEATURES | ({"margin": Value("float64")} if "margin" in dataset.column_names else {}))
    turn_end, prefix_ids = _find_turn_end(dataset, tokenizer), _prefix_ids(tokenizer)
    work = _PairTokenizer(
        tokenizer, turn_end, prefix_ids, features, max_length, max_prompt_length, overlong == "truncate"
    )
    _warn(dataset, work, name)
    if os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    inputs = dataset.with_format(None).select_columns([c for c in _INPUT_COLUMNS if c in dataset.column_names])
    tokenized = inputs.map(
        work,
        with_indices=True,
        batched=True,
        remove_columns=inputs.column_names,
        features=work.features,
        num_proc=num_proc,
        new_fingerprint=_fingerprint(dataset, work),
        desc=f"Tokenizing {name}",
    )
    report, kept = _report(tokenized, name)
    if overlong == "error" and "overlong" in report.dropped:
        dropped = report.dropped["overlong"]
        raise SimPOError(
            f"{name}: {dropped.count} of {report.rows_read} pairs exceed max_length={max_length} (first: row "
            f"{dropped.first_row}, {dropped.detail}). Raise max_length, or set overlong: truncate or overlong: drop."
        )
    report.check_enough_kept()
    if report.one_sided_ends:
        logger.warning(
            f"{name}: in {report.one_sided_ends} pairs only one answer was cut and lost its end token, so the two differ "
            "in how they end for their length alone. Raise max_length, or set overlong: drop."
        )
    if len(kept) < len(tokenized):
        tokenized = tokenized.select(kept)
    return tokenized.remove_columns(list(_NOTES)), report


def check_token_rows(dataset: Any, max_length: int, name: str) -> int:
    """Check rows that came as token ids, and return the tokens of the longest prompt + answer.

    Raises:
        SimPOError: a row has an empty prompt or answer, or exceeds `max_length`; token rows are trained on as they are.
    """
    longest = 0
    for number, row in enumerate(dataset):
        if empty := [column for column in TOKEN_COLUMNS if not row[column]]:
            raise SimPOError(
                f"{name}: {empty[0]} of row {number} is empty; it needs at least one token. Remove the row."
            )
        longest = max(longest, _length(*(row[column] for column in TOKEN_COLUMNS)))
        if longest > max_length:
            raise SimPOError(
                f"{name}: row {number} has {longest} tokens and max_length is {max_length}; rows that come as token ids "
                "are not cut. Raise max_length, or cut the rows."
            )
    return longest


def fit_to_length(
    prompt_ids: list[int],
    chosen_ids: list[int],
    rejected_ids: list[int],
    max_length: int,
    max_prompt_length: int,
    bos_id: int | None,
) -> tuple[list[int], list[int], list[int]]:
    """Cut a pair to `max_length` tokens by the rule of SimPO's official code, keeping a leading BOS.

    Only where prompt + longer answer exceed `max_length`: the prompt is cut to its last `max_prompt_length` tokens (its
    BOS and the last `max_prompt_length - 1`, if that leaves any); if that does not suffice, both answers are cut to
    their first `max_length - max_prompt_length`.
    """
    longer = max(len(chosen_ids), len(rejected_ids))
    if len(prompt_ids) + longer > max_length and len(prompt_ids) > max_prompt_length:
        keeps_bos = prompt_ids[0] == bos_id and max_prompt_length > 1
        head = prompt_ids[:1] if keeps_bos else []
        prompt_ids = head + prompt_ids[len(prompt_ids) - max_prompt_length + len(head) :]
    if len(prompt_ids) + longer > max_length:
        room = max_length - max_prompt_length
        chosen_ids, rejected_ids = chosen_ids[:room], rejected_ids[:room]
    return prompt_ids, chosen_ids, rejected_ids


def render_pair(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenized pair for the eye: what is scored stands between ⟦ and ⟧, long texts lack their middle."""
    prompt_ids, chosen_ids, rejected_ids = (example[name] for name in TOKEN_COLUMNS)
    parts = [f"row {example['row']}: prompt, {len(prompt_ids)} tokens", _decode(prompt_ids, tokenizer)]
    for side, ids in (("chosen", chosen_ids), ("rejected", rejected_ids)):
        parts += [f"{side}, {len(ids)} tokens scored", f"⟦{_decode(ids, tokenizer)}⟧"]
    # Headings stand at the margin, texts are indented.
    return "\n".join(part if i % 2 == 0 else indent(part, "    ", lambda line: True) for i, part in enumerate(parts))


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase, shown: int = 60) -> str:
    if len(ids) <= 2 * shown:
        return str(tokenizer.decode(ids))
    return f"{tokenizer.decode(ids[:shown])} [... {len(ids) - 2 * shown} tokens ...] {tokenizer.decode(ids[-shown:])}"


# --- One batch of rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PairTokenizer:
    """The function that `Dataset.map` runs, with all it needs; picklable for several processes.

    `turn_end` is None where no row is a conversation; `prefix_ids` are the special tokens that the tokenizer puts in
    front of plain text, usually BOS.
    """

    tokenizer: PreTrainedTokenizerBase
    turn_end: TurnEnd | None
    prefix_ids: list[int]
    features: Features
    max_length: int
    max_prompt_length: int
    truncate: bool

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """The columns of `features` for a batch; a dropped row has no ids and a reason."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        texts = [_caught(self._texts, row) for row in rows]
        pairs = iter(self._encode([pair for pair in texts if isinstance(pair, PairTexts)]))
        columns: dict[str, list] = {name: [] for name in self.features}
        for index, row, outcome in zip(indices, rows, texts, strict=True):
            if isinstance(outcome, PairTexts):
                outcome = _caught(self._finish, *next(pairs), isinstance(row["chosen"], list))
            if isinstance(outcome, RowDropped):
                outcome = {**dict.fromkeys(TOKEN_COLUMNS, []), "reason": outcome.reason, "detail": outcome.detail}
            outcome |= {"row": index, "margin": row.get("margin")}
            for name, values in columns.items():
                values.append(outcome.get(name))
        return columns

    def _texts(self, row: Mapping[str, Any]) -> PairTexts:
        prompt, chosen, rejected = explicit_prompt(row)
        if isinstance(chosen, list):
            check_messages(prompt, chosen, rejected)
            assert self.turn_end is not None
            return render_conversation(
                self.tokenizer, self.turn_end, (prompt, chosen, rejected), row_template_kwargs(row)
            )
        if not chosen.strip() or not rejected.strip():
            raise RowDropped("empty_answer")
        return PairTexts(prompt, chosen, rejected)

    def _encode(self, pairs: list[PairTexts]) -> Iterable[tuple[list[int], list[int], list[int]]]:
        """Prompt, chosen and rejected ids of each pair, as the tokenizer splits the texts.

        What stands before the last special token of a prompt is tokenized once and not again with each answer.
        """
        splitting = [token for token in _splitting_tokens(self.tokenizer) if pairs and token in pairs[0].prompt]
        starts = [max([0, *(pair.prompt.rfind(token) for token in splitting)]) for pair in pairs]
        heads = _encode_texts(self.tokenizer, [p.prompt[:start] for p, start in zip(pairs, starts, strict=True)])
        prompts = [pair.prompt[start:] for pair, start in zip(pairs, starts, strict=True)]
        ids = _encode_texts(self.tokenizer, prompts)
        chosen = self._encode_answers(ids, prompts, [pair.chosen for pair in pairs])
        rejected = self._encode_answers(ids, prompts, [pair.rejected for pair in pairs])
        return zip((head + tail for head, tail in zip(heads, ids, strict=True)), chosen, rejected, strict=True)

    def _encode_answers(self, prompt_ids: list[list[int]], prompts: list[str], answers: list[str]) -> list[list[int]]:
        """Ids of the answers behind their prompts.

        Where a token would reach over the boundary, the prompt keeps the ids it has at inference, and the answer is
        tokenized on its own.
        """
        fulls = _encode_texts(
            self.tokenizer, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        )
        merged = [i for i, (full, ids) in enumerate(zip(fulls, prompt_ids, strict=True)) if full[: len(ids)] != ids]
        answer_ids = [full[len(ids) :] for full, ids in zip(fulls, prompt_ids, strict=True)]
        for i, ids in zip(merged, _encode_continuations(self.tokenizer, [answers[i] for i in merged]), strict=True):
            answer_ids[i] = ids
        return answer_ids

    def _finish(
        self, prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], conversational: bool
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
        length = _length(*whole)
        if length > self.max_length and not self.truncate:
            raise RowDropped("overlong", f"{length} tokens")
        fitted = fit_to_length(*whole, self.max_length, self.max_prompt_length, bos_id)
        if fitted[1] == fitted[2]:
            raise RowDropped("identical_after_truncation")
        cuts = [len(after) < len(before) for before, after in zip(whole, fitted, strict=True)]
        return {**dict(zip(TOKEN_COLUMNS, fitted, strict=True)), "cut": cuts, "length": _length(*fitted)}


def _caught(function: Any, *args: Any) -> Any:
    """The function's result, or the `RowDropped` that it raised."""
    try:
        return function(*args)
    except RowDropped as dropped:
        return dropped


def _length(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int]) -> int:
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


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
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
    """Ids of texts that go on from others: behind a special token, so that no space is put before their first word."""
    anchor = next(iter(_splitting_tokens(tokenizer)), "")
    return [ids[bool(anchor) :] for ids in _encode_texts(tokenizer, [anchor + text for text in texts])]


def _prefix_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts in front of a text; those behind it are no part of a prompt."""
    bare = _encode_texts(tokenizer, ["a"])[0]
    full = tokenizer(["a"], return_attention_mask=False)["input_ids"][0]
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]


def _fingerprint(dataset: Dataset, work: _PairTokenizer) -> str:
    """Key of the cached rows: the same in every process and run on the same data, tokenizer and settings."""
    tokenizer = work.tokenizer
    if tokenizer.is_fast:
        # Padding and truncation of earlier calls would show in it, but finding `prefix_ids` has just reset them.
        state = tokenizer.backend_tokenizer.to_str()
    else:
        state = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs]
    key = [
        CODE_VERSION,
        dataset._fingerprint,
        type(tokenizer).__name__,
        state,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        asdict(work.turn_end) if work.turn_end else None,
        work.prefix_ids,
        [work.max_length, work.max_prompt_length, work.truncate],
    ]
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]


# --- Around the map ---------------------------------------------------------------------------------------------------


def _find_turn_end(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    """What `probe_template` finds for conversations; None where there are none."""
    if isinstance(dataset.features["chosen"], Value):  # plain text in every row, known without reading them
        return None
    for row in dataset.with_format(None):
        if isinstance(row["chosen"], list):
            template_kwargs = _caught(row_template_kwargs, row)
            return probe_template(tokenizer, {} if isinstance(template_kwargs, RowDropped) else template_kwargs)
    return None


def _warn(dataset: Dataset, work: _PairTokenizer, name: str) -> None:
    """What the user should know before the work starts."""
    if (work.turn_end.token_id if work.turn_end else work.tokenizer.eos_token_id) is None:
        logger.warning(f"{name}: the tokenizer has no EOS token, so answers are trained without an end.")
    if "prompt" not in dataset.column_names and work.turn_end is None:
        if like := sorted(_PROMPT_LIKE & set(dataset.column_names)):
            logger.warning(
                f"{name}: without a column 'prompt', what chosen and rejected have in common is taken for the prompt; "
                f"if column {like[0]!r} holds it, rename that to 'prompt'."
            )


def _report(tokenized: Dataset, name: str) -> tuple[DropReport, list[int]]:
    """The report on tokenized rows, and the indices of those kept."""
    report, kept = DropReport(name, rows_read=len(tokenized), rows_kept=0), []
    notes = tokenized.select_columns(list(_NOTES))
    for start in range(0, len(notes), 10_000):  # not all at once: the set may be large
        batch = notes[start : start + 10_000]
        for row, note in enumerate(zip(*(batch[name] for name in _NOTES), strict=True), start):
            length, reason, detail, cut = note
            if reason is not None:
                report.dropped.setdefault(reason, Dropped(0, row, detail)).count += 1
                continue
            kept.append(row)
            report.truncated_prompts += cut[0]
            report.truncated_answers += cut[1] + cut[2]
            report.one_sided_ends += cut[1] != cut[2]
            report.longest = max(report.longest, length)
    report.rows_kept = len(kept)
    return report, kept
