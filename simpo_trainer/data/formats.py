"""Foreign row shapes to the fields of a preference pair: renamed and nested columns, ShareGPT, Alpaca, HH-RLHF texts.

A row that cannot be converted still gives a row, made such that tokenization drops it and counts it by its reason.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value

from ..errors import SimPOError
from ..log import get_logger
from .drops import RowDropped
from .messages import Message, split_common_messages
from .places import MESSAGES, SAMPLE, Place, find_place, value_at
from .sources import Rows, readable_rows

logger = get_logger(__name__)

# What is read of a row; every other column is left out, so that sources with different ones can be mixed.
FIELDS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin")
Format = Literal["pairs", "sharegpt", "alpaca", "hh_rlhf"]
# What `columns` may name: `system` besides, which ShareGPT and Alpaca rows have.
NAMED_FIELDS = (*FIELDS, "system")
PAIR_OF_MESSAGES = {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}

# Part of the cache's key: raise it with every change of this file that changes converted rows.
_CODE_VERSION = 2


def to_pairs(rows: Rows, columns: Mapping[str, str] | None, row_format: Format | None, name: str) -> Rows:
    """The rows with the fields of a preference pair and no other columns.

    Args:
        columns: field to its place in the rows: a column, or a path into one with dots ("answers.0.text").
        row_format: how the rows are written; None means what their columns look like.
        name: what messages call the set.

    Raises:
        SimPOError: a place in `columns` does not exist, or the rows lack a column that `row_format` needs.
    """
    rows = typed(rows, name)
    places = {field: find_place(rows, path, field, name) for field, path in (columns or {}).items()}
    features = dict(rows.features) | {field: place.feature for field, place in places.items()}
    found = row_format or _recognise(rows, features)
    if row_format is None and found != "pairs":
        logger.info(f"{name}: read as {found} rows. If they are not, set dataset_format: pairs.")
    if found in _QUESTIONS:
        features |= _name_question(places, features, _QUESTIONS[found])
    elif "system" in places:
        raise SimPOError(
            f"{name}: `columns` names {'system'!r}, which {found} rows do not have. Set dataset_format: alpaca (texts) "
            "or sharegpt (conversations), or remove it."
        )
    shape = _SHAPES[found]
    if missing := [column for column in shape.needs(features) if column not in features]:
        raise SimPOError(
            f"{name}: {found} rows need the column {' and '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, features))}. Set dataset_format to what they are, or name the place by `columns`."
        )
    if row_format is None and found == "pairs":
        _refuse_hidden_prompt(features, name)
    made = shape.features(features)
    if _is_text(features.get("margin")):  # of a CSV file, where all columns are text
        made["margin"] = Value("float64")
    if found == "pairs" and not places and not made:
        return rows.select_columns([field for field in FIELDS if field in features])
    wanted = {field: features[field] for field in FIELDS if field in features} | made
    work = _Conversion(tuple((field, place.steps) for field, place in places.items()), found, tuple(wanted), name)
    before = rows.column_names
    if isinstance(rows, IterableDataset):
        return rows.map(work, batched=True, remove_columns=before, features=Features(wanted))
    return rows.map(work, batched=True, remove_columns=before, features=Features(wanted), desc=f"Reading {name}")


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
# Columns beside two texts without `prompt` that are likely to hold it.
_HIDDEN_PROMPTS = ("question", "instruction", "query", "input", "messages", "conversations", "history", "context")


def _name_question(places: dict[str, Place], features: dict[str, Any], question: str) -> dict[str, Any]:
    """Features of the question where it has another name: as `columns` says, or else, without it, of `prompt`."""
    if "prompt" in places:
        places[question] = places.pop("prompt")
    elif question not in features and "prompt" in features:
        places[question] = Place(("prompt",), features["prompt"])
    else:
        return {}
    if places[question].steps == ("input",):  # which is then no addition to the question
        places["input"] = Place((), Value("null"))
    return {question: places[question].feature}


def _refuse_hidden_prompt(features: Mapping[str, Any], name: str) -> None:
    """Refuses texts whose prompt seems to be in a column of another name: they would be trained on without it."""
    likely = [column for column in _HIDDEN_PROMPTS if column in features]
    if "prompt" in features or not likely or not _is_text(features.get("chosen")):
        return
    column = likely[0]
    if _is_text(features[column]):
        change = f"Set `columns: {{prompt: {column}}}`, and dataset_format: alpaca to make conversations of them"
        if "system" in features:
            change += ", with the column 'system' as their system message; text pairs leave that out"
    else:
        place = "" if column == "conversations" else f", and `columns: {{prompt: {column}}}`,"
        change = f"Set dataset_format: sharegpt{place} to make conversations of them"
    raise SimPOError(
        f"{name}: chosen and rejected are texts without a column 'prompt', and a column {column!r} is there, which "
        f"seems to hold it. {change}. If the answers hold the prompt themselves, set dataset_format: pairs."
    )


def _recognise(rows: Rows, features: Mapping[str, Any]) -> Format:
    """How rows are written, from their columns. HH-RLHF's texts look like any other: they are read on request only."""
    if "prompt" in features:
        return "pairs"
    if "conversations" in features and _is_one_turn(rows, features.get("chosen")):
        return "sharegpt"
    if "instruction" in features and (_is_text(features.get("chosen")) or _is_two_outputs(features)):
        return "alpaca"
    return "pairs"


def _is_one_turn(rows: Rows, feature: Any) -> bool:
    """Whether answers are written as ShareGPT's turns, or each as one message; not as a whole conversation."""
    inside = feature.feature if isinstance(feature, List | LargeList) else feature
    if isinstance(inside, dict):
        return "from" in inside or ("role" in inside and inside is feature)
    if not isinstance(inside, Json):
        return False
    values = [row["chosen"] for row in rows.with_format(None).take(SAMPLE) if row.get("chosen")]
    turns = [turn for value in values for turn in _listed(value) if isinstance(turn, dict)]
    return any("from" in turn for turn in turns) or (bool(turns) and all(isinstance(value, dict) for value in values))


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_two_outputs(features: Mapping[str, Any]) -> bool:
    """LLaMA-Factory's older ranking rows: `output` is [chosen, rejected]."""
    output = features.get("output")
    return "chosen" not in features and isinstance(output, List | LargeList) and _is_text(output.feature)


def _pair_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Types of the fields that are converted: a single message becomes a list."""
    made = {field: MESSAGES for field in PAIR_OF_MESSAGES if isinstance(features.get(field), dict)}
    return made | {field: Json() for field in PAIR_OF_MESSAGES if isinstance(features.get(field), Json)}


def _from_pair(row: dict[str, Any]) -> dict[str, Any]:
    return row | {field: [row[field]] for field in PAIR_OF_MESSAGES if isinstance(row.get(field), dict)}


def _chat_features(features: Mapping[str, Any]) -> dict[str, Any]:
    return PAIR_OF_MESSAGES | ({"tools": Value("string")} if "tools" in features else {})


# ShareGPT: LLaMA-Factory's `from` and `value`, and what a chat template calls these roles.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}


def _from_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = row["conversations"]
    if turns is None:
        return row | {"prompt": None, "chosen": None, "rejected": None}
    answers = {
        side: None if row[side] is None else [_message(turn) for turn in _answer(row[side])]
        for side in ("chosen", "rejected")
    }
    prompt = _with_system(row, [_message(turn) for turn in _listed(turns)])
    return row | answers | {"prompt": prompt, "tools": _tools_text(row)}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _answer(value: Any) -> list:
    return [{"from": "gpt", "value": value}] if isinstance(value, str) else _listed(value)


def _message(turn: Any) -> Message:
    """A `from`/`value` turn as a message; one that cannot be read has no role or no content, and its row is dropped."""
    if isinstance(turn, dict) and "from" not in turn and "role" in turn:
        return turn
    sender, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    message: Message = {"role": _ROLES.get(str(sender)), "content": value}
    if sender != "function_call":
        return message
    calls = _parsed(value)
    functions = [
        {"name": call["name"], "arguments": _parsed(call.get("arguments", {}))}
        for call in _listed(calls)
        if isinstance(call, dict) and isinstance(call.get("name"), str)
    ]
    if not functions or len(functions) < len(_listed(calls)):
        return message | {"content": None}
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return message | {"content": "", "tool_calls": tool_calls}


def _parsed(value: Any) -> Any:
    """What JSON text says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the row's `system` text, unless they begin with one of their own, which goes first."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _tools_text(row: Mapping[str, Any]) -> str | None:
    """The row's tools as JSON text, each as {"type": "function", "function": ...}, the form that templates take.

    What cannot be read is left as text that is no JSON, for which tokenization drops the row.
    """
    given = row.get("tools") or None
    tools = _parsed(given)
    if tools is None:
        return None
    tools = _listed(tools)
    if not all(isinstance(tool, dict) for tool in tools):
        return f"not a list of tools: {given}"
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False)


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "chosen" not in row and isinstance(row.get("output"), list) and len(row["output"]) == 2:
        chosen, rejected = row["output"]
    prompt: list[Message] = []
    for turn in _parsed(row.get("history") or None) or []:
        user, assistant = turn if isinstance(turn, list) and len(turn) == 2 else (None, None)
        prompt += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    texts = (row["instruction"], row.get("input"))
    query = [text for text in texts if isinstance(text, str) and text]
    messages = _with_system(row, [*prompt, {"role": "user", "content": "\n".join(query)}])
    return row | {
        "prompt": messages if query else None,
        "chosen": None if chosen is None else [{"role": "assistant", "content": chosen}],
        "rejected": None if rejected is None else [{"role": "assistant", "content": rejected}],
        "tools": _tools_text(row),
    }


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
        lambda features: ["conversations", "chosen", "rejected"],
        _chat_features,
        _from_sharegpt,
    ),
    "alpaca": _Shape(
        lambda features: [
            "instruction",
            *([] if _is_two_outputs(features) else ["chosen", "rejected"]),
        ],
        _chat_features,
        _from_alpaca,
    ),
    "hh_rlhf": _Shape(lambda features: ["chosen", "rejected"], lambda features: PAIR_OF_MESSAGES, _from_hh_rlhf),
}
