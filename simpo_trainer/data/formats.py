"""Foreign row shapes to the fields of a pair or of ranked answers: nested columns, ShareGPT, Alpaca, HH-RLHF texts.

A row that cannot be converted still gives a row, made such that tokenization drops it and counts it by its reason.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..errors import SimPOError
from ..log import get_logger
from .drops import RowDropped
from .fields import NOTES, PAIR_FIELDS, RANKED_FIELDS, RANKINGS, has_ranked_answers, read_fields
from .media import note_media
from .messages import Message, split_common_messages
from .places import MESSAGES, SAMPLE, Place, find_place, value_at
from .published import completed
from .ranking import as_number
from .recognition import (
    Format,
    is_text,
    is_two_outputs,
    listed,
    may_be_numbers,
    messages_prompt,
    recognise_format,
    refuse_hidden_prompt,
    refuse_prompt_elsewhere,
)
from .sources import Rows, readable_rows
from .turns import message_of, parsed, speaker
from .verdicts import roots, with_better_first
from .written import read_written

logger = get_logger(__name__)

# What is read of a row; every other column is left out, so that sources with different ones can be mixed.
_GIVEN_FIELDS = tuple(dict.fromkeys((*PAIR_FIELDS, *RANKED_FIELDS)))
FIELDS = (*_GIVEN_FIELDS, *NOTES)
# What `columns` may name: `system` besides, which ShareGPT and Alpaca rows have, and what tells the better answer.
NAMED_FIELDS = (*_GIVEN_FIELDS, "system", "answers", "better")
PAIR_OF_MESSAGES = {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}

_NUMBERS = List(Value("float64"))
# Part of the cache's key: raise it with every change of this file or of turns.py that changes converted rows.
_CODE_VERSION = 5


def to_pairs(rows: Rows, columns: Mapping[str, Any] | None, row_format: Format | None, name: str) -> Rows:
    """The rows with the fields of a preference pair, or of ranked answers, and no other columns.

    Args:
        columns: field to its place in the rows: a column, or a path into one with dots ("answers.0.text"). `answers`
            and `better` tell the better of two answers: the place of the one that is better by the value that says so.
        row_format: how the rows are written; None means what their columns look like.
        name: what messages call the set.

    Raises:
        SimPOError: a place in `columns` does not exist, the rows lack a column that `row_format` needs, or have columns
            that exclude each other.
    """
    rows = typed(rows, name)
    columns = completed(rows, columns, name)
    rows = note_media(rows, roots(columns))
    rows, columns = with_better_first(rows, columns, name)
    rows = read_written(rows, name, columns, row_format)
    places = {field: find_place(rows, path, field, name) for field, path in columns.items()}
    rows = _without_rivals(rows, places)
    features = dict(rows.features) | {field: place.feature for field, place in places.items()}
    fields = read_fields(features, name)
    beside = messages_prompt(rows, places, features) if row_format in (None, "sharegpt") else None
    if beside is not None:
        places["prompt"] = Place((beside,), features[beside])
    found = row_format or ("sharegpt" if beside else recognise_format(rows, features))
    if row_format is None and found != "pairs":
        prompt = f" with the prompt in {beside!r}" if beside not in (None, "conversations") else ""
        logger.info(f"{name}: read as {found} rows{prompt}. If they are not, set dataset_format: pairs.")
    if found in _QUESTIONS:
        features |= _name_question(places, features, _QUESTIONS[found])
    elif "system" in places and found != "chat":
        raise SimPOError(
            f"{name}: `columns` names {'system'!r}, which {found} rows do not have. Set dataset_format: chat (texts) "
            "or sharegpt (conversations), or remove it."
        )
    shape = _SHAPES[found]
    if missing := [column for column in shape.needs(features) if column not in features]:
        raise SimPOError(
            f"{name}: {found} rows need the column {' and '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, features))}. Set dataset_format to what they are, or name the place by `columns`."
        )
    if row_format is None and found == "pairs":
        refuse_hidden_prompt(rows, places, features, name)
    made = shape.features(features)
    if is_text(features.get("margin")):  # of a CSV file, where all columns are text
        made["margin"] = Value("float64")
    made |= {ranking: _NUMBERS for ranking in RANKINGS if ranking in fields and may_be_numbers(features[ranking])}
    if found == "pairs" and not places and not made:
        return rows.select_columns(list(fields))
    wanted = {field: features[field] for field in fields} | made
    work = _Conversion(tuple((field, place.steps) for field, place in places.items()), found, tuple(wanted), name)
    before = rows.column_names
    if isinstance(rows, IterableDataset):
        return rows.map(work, batched=True, remove_columns=before, features=Features(wanted))
    return rows.map(work, batched=True, remove_columns=before, features=Features(wanted), desc=f"Reading {name}")


def _without_rivals(rows: Rows, places: Mapping[str, Place]) -> Rows:
    """The rows without columns that cannot stand beside one that `columns` names."""
    rivals = {
        column
        for ours, theirs in (({"responses"}, {"chosen", "rejected"}), ({"scores"}, {"ranks"}))
        for named, others in ((ours, theirs), (theirs, ours))
        if named & places.keys()
        for column in others - places.keys()
    }
    used = {place.steps[0] for place in places.values()}
    return rows.remove_columns(sorted((rivals & set(rows.features)) - used))


def as_handed_over(rows: Rows, name: str) -> Rows:
    """The rows of pairs or ranked answers that a program hands over: media noted, and text that is messages read.

    Raises:
        SimPOError: answers are single messages and the prompt is in a column of another name.
    """
    rows = read_written(note_media(rows), name)
    features: Mapping[str, Any] = rows.features or dict.fromkeys(next(iter(rows), {}))
    refuse_prompt_elsewhere(rows, {}, features, name)
    return rows


def typed(rows: Rows, name: str) -> Rows:
    """The rows with known features: those of a stream that states none are taken from its first rows."""
    if isinstance(rows, Dataset) or rows.features is not None:
        return rows
    sample = list(readable_rows(rows.take(SAMPLE), name))
    return rows.cast(Dataset.from_list(sample, on_mixed_types="use_json").features)


def split_turns(chosen: list[Message], rejected: list[Message]) -> tuple[list, list, list]:
    """Prompt, chosen and rejected of two whole conversations; equal ones keep equal answers, to be dropped."""
    try:
        return split_common_messages(chosen, rejected)
    except RowDropped:
        return chosen[:-1], chosen[-1:], rejected[-1:]


# --- Conversion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conversion:
    """The function that `map` runs; all it needs is in its fields, which make the cache's key."""

    places: tuple[tuple[str, tuple[str, ...]], ...]
    row_format: Format
    wanted: tuple[str, ...]
    name: str
    version: int = _CODE_VERSION

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        columns: dict[str, list] = {field: [] for field in self.wanted}
        convert = _SHAPES[self.row_format].convert
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            row |= {field: value_at(row, steps) if steps else None for field, steps in self.places}
            converted = convert(row)
            if "margin" in self.wanted and isinstance(row["margin"], str):
                converted["margin"] = _number(row["margin"], self.name)
            for ranking in RANKINGS:
                if ranking in self.wanted and isinstance(row[ranking], list):
                    converted[ranking] = [as_number(value) for value in row[ranking]]
            for field, column in columns.items():
                column.append(converted.get(field))
        return columns


@dataclass(frozen=True)
class _Shape:
    """A way to write rows: the columns it needs, those that it makes with their types, and how one row is converted."""

    needs: Callable[[Mapping[str, Any]], list[str]]
    features: Callable[[Mapping[str, Any]], dict[str, Any]]
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SimPOError(
            f"{name}: a row has the margin {text!r}; it must be a number, 0 or above. Correct the column, or remove or "
            "rename it if it is not meant for the loss."
        ) from None


# The column of the question in rows that `columns` may name by `prompt`.
_QUESTIONS: dict[str, str] = {"sharegpt": "conversations", "alpaca": "instruction"}


def _name_question(places: dict[str, Place], features: dict[str, Any], question: str) -> dict[str, Any]:
    """Features of the question where it has another name: as `columns` says, or else, without it, of `prompt`."""
    if "prompt" in places:
        places[question] = places.pop("prompt")
    elif question not in features and "prompt" in features:
        places[question] = Place(("prompt",), features["prompt"])
    else:
        return {}
    for other in ("input", "history"):
        if places[question].steps == (other,):  # which is then no addition to the question
            places[other] = Place((), Value("null"))
    return {question: places[question].feature}


def _pair_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the fields that are converted: a single message becomes a list."""
    made = {field: MESSAGES for field in PAIR_OF_MESSAGES if isinstance(features.get(field), dict)}
    return made | {field: Json() for field in PAIR_OF_MESSAGES if isinstance(features.get(field), Json)}


def _from_pair(row: dict[str, Any]) -> dict[str, Any]:
    return row | {field: [row[field]] for field in PAIR_OF_MESSAGES if isinstance(row.get(field), dict)}


def _chat_features(features: Mapping[str, Any]) -> dict[str, Any]:
    ranked = {"prompt": MESSAGES, "responses": List(MESSAGES)}
    answers = ranked if has_ranked_answers(features) else PAIR_OF_MESSAGES
    return answers | ({"tools": Value("string")} if "tools" in features else {})


def _answer_columns(features: Mapping[str, Any]) -> list[str]:
    return ["responses"] if has_ranked_answers(features) else ["chosen", "rejected"]


def _converted_answers(row: Mapping[str, Any], messages: Callable[[Any], list[Message]]) -> dict[str, Any]:
    """The answers of a row as message lists; None for one that is missing."""

    def converted(answer: Any) -> list[Message] | None:
        return None if answer is None else messages(answer)

    if has_ranked_answers(row):
        given = row["responses"]
        return {"responses": [converted(answer) for answer in given] if isinstance(given, list) else None}
    return {side: converted(row.get(side)) for side in ("chosen", "rejected")}


def _from_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = row["conversations"]
    if turns is None:
        return row | dict.fromkeys(("prompt", "chosen", "rejected", "responses"))
    answers = _converted_answers(row, lambda answer: [message_of(turn) for turn in _answer(answer)])
    prompt = _with_system(row, [message_of(turn) for turn in listed(turns)])
    return row | answers | {"prompt": prompt, "tools": _tools_text(row)}


def _answer(value: Any) -> list:
    return [{"from": "gpt", "value": value}] if isinstance(value, str) else listed(value)


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the row's `system` text, unless they begin with one of their own, which goes first."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or (messages and speaker(messages[0]) == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _tools_text(row: Mapping[str, Any]) -> str | None:
    """The row's tools as JSON text, each as {"type": "function", "function": ...}, the form that templates take.

    What cannot be read is left as text that is no JSON, for which tokenization drops the row.
    """
    given = row.get("tools") or None
    tools = parsed(given)
    if tools is None:
        return None
    tools = listed(tools)
    if not all(isinstance(tool, dict) for tool in tools):
        return f"not a list of tools: {given}"
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False)


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    if "chosen" not in row and isinstance(row.get("output"), list) and len(row["output"]) == 2:
        row |= dict(zip(("chosen", "rejected"), row["output"], strict=True))
    prompt: list[Message] = []
    for turn in parsed(row.get("history") or None) or []:
        user, assistant = turn if isinstance(turn, list) and len(turn) == 2 else (None, None)
        prompt += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    texts = (row["instruction"], row.get("input"))
    query = [text for text in texts if isinstance(text, str) and text]
    messages = _with_system(row, [*prompt, {"role": "user", "content": "\n".join(query)}])
    answers = _converted_answers(row, lambda answer: [{"role": "assistant", "content": answer}])
    return row | answers | {"prompt": messages if query else None, "tools": _tools_text(row)}


def _from_chat(row: dict[str, Any]) -> dict[str, Any]:
    prompt = row["prompt"]
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answers = _converted_answers(
        row, lambda answer: [{"role": "assistant", "content": answer}] if isinstance(answer, str) else listed(answer)
    )
    return row | answers | {"prompt": _with_system(row, asked) if prompt else None, "tools": _tools_text(row)}


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _from_hh_rlhf(row: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(row["chosen"], str) or not isinstance(row["rejected"], str):
        return row | {"prompt": None, "chosen": None, "rejected": None}
    fields = split_turns(_dialogue(row["chosen"]), _dialogue(row["rejected"]))
    return row | dict(zip(("prompt", "chosen", "rejected"), fields, strict=True))


def _dialogue(text: str) -> list[Message]:
    """The turns of a dialogue; none where it does not begin with one."""
    before, *rest = _SPEAKER.split("\n\n" + text.lstrip())
    if before:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()} for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


_SHAPES: dict[str, _Shape] = {
    "pairs": _Shape(lambda features: [], _pair_features, _from_pair),
    "sharegpt": _Shape(
        lambda features: ["conversations", *_answer_columns(features)],
        _chat_features,
        _from_sharegpt,
    ),
    "chat": _Shape(
        lambda features: ["prompt", *_answer_columns(features)],
        _chat_features,
        _from_chat,
    ),
    "alpaca": _Shape(
        lambda features: [
            "instruction",
            *([] if is_two_outputs(features) else _answer_columns(features)),
        ],
        _chat_features,
        _from_alpaca,
    ),
    "hh_rlhf": _Shape(lambda features: ["chosen", "rejected"], lambda features: PAIR_OF_MESSAGES, _from_hh_rlhf),
}
