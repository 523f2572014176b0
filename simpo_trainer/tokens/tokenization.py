"""Preference rows to token ids: tokenize, fit to length, drop what cannot teach, and say what was done.

An answer is scored from the first token behind the prompt to its end token. Its position separates it from the prompt,
never the value of an id: a padding token may well be the end token too.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import date
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..data.drops import DropReport, RowDropped, caught
from ..data.fields import SOURCE, check_columns, check_margins, has_ranked_answers, read_fields
from ..data.formats import as_handed_over
from ..data.media import note_media
from ..data.messages import Message, explicit_prompt, row_template_kwargs, without_filled_keys
from ..data.published import refuse_verdicts
from ..data.recognition import is_text
from ..data.sources import readable_rows
from ..errors import SimPOError
from ..log import get_logger
from .pair_tokenizer import PairTokenizer, prefix_ids
from .reporter import RowReporter
from .rows import RANKED_TOKEN_COLUMNS, TOKEN_COLUMNS, token_columns
from .settings import RowSettings
from .templates import TurnEnd, probe_template

logger = get_logger(__name__)

# Part of the cache's key: raise it with every change of this file, pair_tokenizer.py, messages.py or templates.py that
# changes token ids.
CODE_VERSION = 7

# What the cached rows say beside their ids; read for the report, then removed.
_NOTES = Features(
    {
        "length": Value("int32"),
        "whole_length": Value("int32"),  # before anything was cut
        "lost": Value("int32"),  # tokens of answers that were cut off
        "reason": Value("string"),
        "detail": Value("string"),
        "pairs": Value("int32"),
        "left_out": List(Value("string")),  # why, of each answer that a ranked row is kept without
        "cut": List(Value("bool")),  # of prompt and answers
        "second": Value("string"),  # why an answer got the second rendering
        "ignored": Value("string"),  # parts of the prompt that the chat template does not write
    }
)
_IDS = List(Value("int32"))
_PAIR_FEATURES = dict.fromkeys(TOKEN_COLUMNS, _IDS)
_RANKED_FEATURES = dict.fromkeys(RANKED_TOKEN_COLUMNS, _IDS) | {"response_ids": List(_IDS)}
# Columns without a `prompt` beside them that suggest that the prompt is not implicit but called otherwise.
_PROMPT_LIKE = {"question", "instruction", "query", "input"}
# Rows of a set, from all parts of it, whose implicit prompts are looked at before the work starts.
_SAMPLE = 1000


def tokenize_preferences(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings | None = None,
    *,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, DropReport]:
    """Token ids of preference pairs, or of prompts with ranked answers, and a report of what was cut or left out.

    Args:
        dataset: columns `chosen`, `rejected` and, unless implicit, `prompt`: strings or message lists. Or `prompt`,
            `responses` (a list of such answers) and `scores` or `ranks`. Further columns that are read: `tools` and
            `chat_template_kwargs` for the chat template, `margin` (>= 0, of pairs) for the loss.
        settings: how the rows are made; unset means the defaults.
        num_proc: processes that tokenize; None means this one.
        name: what messages call the set.

    Returns:
        A dataset in the order of `dataset` with the columns `row` (index in `dataset`), `prompt_ids`, `chosen_ids`,
        `rejected_ids` (answers with their end token) and, if given, `margin`. Of ranked answers: `response_ids` (those
        that are in a pair, the best first), `chosen` and `rejected` (their indices in it, one each for every pair) and,
        with `margin_scale`, `margin` (one for every pair). A text column `source` is kept, unless the set is the one
        to train on. And the report. The work is cached beside the files of
        `dataset`, under a key made of its fingerprint, the tokenizer and the settings.

    Raises:
        SimPOError: columns or margins are not usable, the chat template is missing or broken, more than half of the
            rows would be left out, or a row is too long and `overlong` is "error".
    """
    refuse_verdicts(dataset, name, is_handed_over=True)
    check_columns(dataset.column_names, name)
    if len(dataset) == 0:
        raise SimPOError(f"{name}: the set has no rows; it needs at least one preference pair.")
    check_margins(dataset, name)
    dataset = as_handed_over(dataset, name)
    settings = RowSettings.of(settings or RowSettings())
    work = _pair_tokenizer(dataset, tokenizer, settings, dataset.column_names)
    _warn(dataset.column_names, work, name)
    sample = dataset.with_format(None).select(range(0, len(dataset), -(-len(dataset) // _SAMPLE)))
    _check_implicit_prompts(sample, work, name)
    if os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    inputs = dataset.with_format(None).select_columns(list(read_fields(dataset.column_names, name)))
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
    limits: dict[str, Any] = {key: getattr(settings, key) for key in ("max_length", "overlong", "on_bad_row")}
    reporter = RowReporter(name, ranked=work.ranked, **limits)
    kept = _kept_rows(tokenized, reporter)
    reporter.end()
    if len(kept) < len(tokenized):
        tokenized = tokenized.select(kept)
    tokenized = tokenized.remove_columns(list(_NOTES))
    if name != "train" and is_text(dataset.features.get(SOURCE)):
        sources = dataset.with_format(None)[SOURCE][:]
        tokenized = tokenized.add_column(SOURCE, [sources[row] for row in tokenized["row"]])
    return tokenized, reporter.report


def tokenize_stream(
    dataset: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings | None = None,
    *,
    name: str = "train",
) -> IterableDataset:
    """Token ids of streamed rows, each row with what :class:`~simpo_trainer.data.drops.DropReport` counts.

    Rows that cannot be trained on are in it, without ids and with a `reason`. Rows that are token ids already pass.

    Args:
        dataset: rows as :func:`tokenize_preferences` takes them, conversations in all or in none.
        settings: how the rows are made; unset means the defaults.
        name: what messages call the set.

    Raises:
        SimPOError: columns are not usable, or the chat template is missing or broken.
    """
    dataset = note_media(dataset)
    first = next(readable_rows(dataset, name), None)
    if first is None:
        raise SimPOError(f"{name}: the stream has no rows; it needs preference pairs.")
    if token_columns(first):
        return dataset
    refuse_verdicts(dataset, name, is_handed_over=True)
    check_columns(list(first), name)
    dataset = as_handed_over(dataset, name)
    first = next(readable_rows(dataset, name))
    settings = RowSettings.of(settings or RowSettings())
    work = _pair_tokenizer(dataset.take(1), tokenizer, settings, list(first))
    _warn(list(first), work, name)
    _check_implicit_prompts(dataset.take(100), work, name)
    read = list(read_fields(first, name))
    inputs = dataset.select_columns(read)
    return inputs.map(
        work,
        with_indices=True,
        batched=True,
        batch_size=100,  # a step should not wait for many more rows than it takes
        remove_columns=read,
        features=work.features,
    )


# --- Around the map ---------------------------------------------------------------------------------------------------


def _fingerprint(dataset: Dataset, work: PairTokenizer) -> str:
    """Returns the key of the cached rows, the same in all processes and runs with the same data and settings."""
    tokenizer = work.tokenizer
    if tokenizer.is_fast:
        # Padding and truncation of earlier calls would show in it, but finding `prefix_ids` has just reset them.
        state = tokenizer.backend_tokenizer.to_str()
    else:
        state = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs]
    key = [
        CODE_VERSION,
        str(work.features),
        dataset._fingerprint,
        type(tokenizer).__name__,
        state,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        asdict(work.turn_end) if work.turn_end else None,
        work.prefix_ids,
        asdict(work.settings),
        # A template may write the date.
        date.today().isoformat() if work.turn_end and "strftime_now" in str(tokenizer.chat_template) else None,
    ]
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]


def opening_messages(tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The empty system message of alignment-handbook's runs, for a template that by its text knows such messages."""
    text = str(tokenizer.chat_template)
    return [{"role": "system", "content": ""}] if "system" in text or "<|im_start|>" in text else []


def _pair_tokenizer(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    columns: Collection[str],
) -> PairTokenizer:
    """The function that tokenizes rows such as those of `dataset`, which has these columns."""
    ranked = has_ranked_answers(columns)
    answers, margin = (_RANKED_FEATURES, List(Value("float64"))) if ranked else (_PAIR_FEATURES, Value("float64"))
    features = {"row": Value("int64"), **answers, **_NOTES}
    if settings.margin_scale if ranked else "margin" in columns:
        features["margin"] = margin
    opening = opening_messages(tokenizer) if settings.auto_insert_empty_system_msg else []
    return PairTokenizer(
        tokenizer,
        turn_end=_find_turn_end(dataset, tokenizer, opening, "responses" if ranked else "chosen"),
        prefix_ids=prefix_ids(tokenizer),
        features=Features(features),
        settings=settings,
        opening=opening,
        inputs=dataset.features,
        ranked=ranked,
    )


def _find_turn_end(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, opening: list[Message], column: str
) -> TurnEnd | None:
    """Returns what `probe_template` finds for answers in `column` that are conversations; None without such answers."""
    feature = dataset.features and dataset.features[column]
    if isinstance(feature.feature if column == "responses" and isinstance(feature, List) else feature, Value):
        return None  # plain text in every row, unread
    for row in dataset.with_format(None):
        answers = row[column] if column == "responses" else [row[column]]
        if isinstance(answers, list) and any(isinstance(answer, list | dict) for answer in answers):
            template_kwargs = caught(row_template_kwargs, without_filled_keys(row, dataset.features))
            given = {} if isinstance(template_kwargs, RowDropped) else template_kwargs
            return probe_template(tokenizer, given, opening)
    return None


def _warn(columns: list[str], work: PairTokenizer, name: str) -> None:
    """Warn, before the work starts, of things that the user should know."""
    if (work.turn_end.token_id if work.turn_end else work.tokenizer.eos_token_id) is None:
        logger.warning(f"{name}: the tokenizer has no EOS token, so answers are trained without an end.")
    if work.turn_end is not None:
        return
    if "prompt" not in columns:
        if like := sorted(_PROMPT_LIKE & set(columns)):
            logger.warning(
                f"{name}: without a column 'prompt', what chosen and rejected have in common is taken for the prompt; "
                f"if column {like[0]!r} holds it, rename that to 'prompt'."
            )
    elif work.tokenizer.chat_template:
        logger.warning(
            f"{name}: prompts and answers are texts, so they are trained on one behind the other as they stand, "
            "without the tokenizer's chat template. To train a chat model as it is used, make messages of them: in a "
            "recipe by `dataset_format: chat`, in Python as [{'role': 'user', 'content': ...}]."
        )


def _check_implicit_prompts(rows: Iterable[dict[str, Any]], work: PairTokenizer, name: str) -> None:
    """Refuses texts without a prompt that have no beginning in common: they would be trained on without a question.

    Raises:
        SimPOError: more than half of the rows have an empty prompt.
    """
    if work.turn_end is not None:
        return
    prompts = []
    for row in readable_rows(rows, name):
        if "prompt" in row:
            return
        found = caught(explicit_prompt, row)
        prompts += [found[0]] if isinstance(found, tuple) else []
    if 2 * prompts.count("") > len(prompts):
        raise SimPOError(
            f"{name}: there is no column 'prompt', and in {prompts.count('')} of {len(prompts)} rows looked at, chosen "
            "and rejected have no beginning in common that could be the prompt. Name the column that holds it: in a "
            "recipe by `columns: {prompt: its name}`, else by renaming it to 'prompt'."
        )


def _kept_rows(tokenized: Dataset, reporter: RowReporter) -> list[int]:
    """Count tokenized rows, and return the indices of those that are kept."""
    kept = []
    notes = tokenized.select_columns(list(_NOTES))
    for start in range(0, len(notes), 10_000):  # not all at once: the set may be large
        batch = notes[start : start + 10_000]
        for row, values in enumerate(zip(*(batch[name] for name in _NOTES), strict=True), start):
            if reporter.count(row, dict(zip(_NOTES, values, strict=True))):
                kept.append(row)
    return kept
