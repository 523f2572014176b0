"""Foreign row shapes to the fields of a preference pair: renamed and nested columns, ShareGPT, Alpaca, HH-RLHF texts.

A row that cannot be converted still gives a row, made such that tokenization drops it and counts it by its reason.
"""

import difflib
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
from .sources import Rows

logger = get_logger(__name__)

# What is read of a row; every other column is left out, so that sources with different ones can be mixed.
FIELDS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "margin")
Format = Literal["pairs", "sharegpt", "alpaca", "hh_rlhf"]
# Objects, so that a message keeps exactly the keys it has; a struct would give every message the keys of all.
MESSAGES = List(Json())
PAIR_OF_MESSAGES = {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}

# Part of the cache's key: raise it with every change of this file that changes converted rows.
_CODE_VERSION = 1
# Rows that show the types of data that states none.
_SAMPLE = 100


def to_pairs(rows: Rows, columns: Mapping[str, str] | None, row_format: Format | None, name: str) -> Rows:
    """The rows with the fields of a preference pair and no other columns.

    Args:
        columns: field to its place in the rows: a column, or a path into one with dots ("answers.0.text").
        row_format: how the rows are written; None means what their columns look like.
        name: what messages call the set.

    Raises:
        SimPOError: a place in `columns` does not exist, or the rows lack a column that `row_format` needs.
    """
    rows = typed(rows)
    places = {field: _find_place(rows, path, field, name) for field, path in (columns or {}).items()}
    features = dict(rows.features) | {field: place.feature for field, place in places.items()}
    found = row_format or _recognise(features)
    if row_format is None and found != "pairs":
        logger.info(f"{name}: read as {found} rows. If they are not, set dataset_format: pairs.")
    shape = _SHAPES[found]
    if missing := [column for column in shape.needs(features) if column not in features]:
        raise SimPOError(
            f"{name}: {found} rows need the column {' and '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, features))}. Set dataset_format to what they are, or name the place by `columns`."
        )
    if found == "pairs" and not places:
        return rows.select_columns([field for field in FIELDS if field in features])
    wanted = {field: features[field] for field in FIELDS if field in features} | shape.features(features)
    work = _Conversion(tuple((field, place.steps) for field, place in places.items()), found, tuple(wanted))
    before = rows.column_names
    if isinstance(rows, IterableDataset):
        return rows.map(work, batched=True, remove_columns=before, features=Features(wanted))
    return rows.map(work, batched=True, remove_columns=before, features=Features(wanted), desc=f"Reading {name}")


def typed(rows: Rows) -> Rows:
    """The rows with known features: those of a stream that states none are taken from its first rows."""
    if isinstance(rows, Dataset) or rows.features is not None:
        return rows
    return rows.cast(Dataset.from_list(list(rows.take(_SAMPLE)), on_mixed_types="use_json").features)


def split_turns(chosen: list[Message], rejected: list[Message]) -> tuple[list, list, list]:
    """Prompt, chosen and rejected of two whole conversations; equal ones keep equal answers, to be dropped."""
    try:
        return split_common_messages(chosen, rejected)
    except RowDropped:
        return chosen[:-1], chosen[-1:], rejected[-1:]


# --- Places in a row --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a field is found: a column and the keys and numbers that lead from there; and the type of what is there."""

    steps: tuple[str, ...]
    feature: Any


def _find_place(rows: Rows, path: str, field: str, name: str) -> _Place:
    """The place that `path` names; a column whose name has dots comes before a path of that spelling."""
    features, parts = rows.features, path.split(".")
    for end in range(len(parts), 0, -1):
        if (column := ".".join(parts[:end])) in features:
            return _follow(rows, [column, *parts[end:]], field, name)
    raise _no_place(name, field, path, "there is no column", parts[0], list(features))


def _follow(rows: Rows, steps: list[str], field: str, name: str) -> _Place:
    feature = rows.features[steps[0]]
    for depth, step in enumerate(steps[1:], start=1):
        if isinstance(feature, Json):
            return _Place(tuple(steps), _sampled_feature(rows, steps, field, name))
        inside = feature if isinstance(feature, dict) else {}
        if step in inside:
            feature = inside[step]
        elif isinstance(feature, List | LargeList) and step.isdecimal():
            feature = feature.feature
        else:
            keys = list(inside) or (["0", "1", "..."] if isinstance(feature, List | LargeList) else [])
            where = ".".join(steps[:depth])
            raise _no_place(name, field, ".".join(steps), f"{where!r} has no", step, keys)
    return _Place(tuple(steps), feature)


def _sampled_feature(rows: Rows, steps: list[str], field: str, name: str) -> Any:
    """The type of what stands at a place inside objects of any keys, from the first rows."""
    sample = list(rows.with_format(None).take(_SAMPLE))
    values = [value for row in sample if (value := _at(row, tuple(steps))) is not None]
    if not values:
        keys = sorted({key for row in sample for key in _keys_at(row, tuple(steps[:-1]))})
        raise _no_place(name, field, ".".join(steps), f"the first {len(sample)} rows have no", steps[-1], keys)
    for kind, feature in ((str, Value("string")), (int | float, Value("float64")), (list, MESSAGES)):
        if all(isinstance(value, kind) for value in values):
            return feature
    return Json()


def _keys_at(row: Any, steps: tuple[str, ...]) -> list[str]:
    value = _at(row, steps)
    return list(value) if isinstance(value, dict) else []


def _at(value: Any, steps: tuple[str, ...]) -> Any:
    """What stands at a place in a row; None where the row does not reach so far."""
    for step in steps:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _no_place(name: str, field: str, path: str, what: str, step: str, there: list[str]) -> SimPOError:
    near = difflib.get_close_matches(step, there, n=1, cutoff=0.5)
    hint = f" Is {near[0]!r} meant?" if near else ""
    return SimPOError(
        f"{name}: `columns` takes {field!r} from {path!r}, but {what} {step!r}; there is "
        f"{', '.join(map(repr, there)) or 'nothing to name'}.{hint} Correct `columns`."
    )


# --- Conversion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conversion:
    """The function that `map` runs; all it needs is in its fields, which make the cache's key."""

    places: tuple[tuple[str, tuple[str, ...]], ...]
    row_format: Format
    wanted: tuple[str, ...]
    version: int = _CODE_VERSION

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        columns: dict[str, list] = {field: [] for field in self.wanted}
        convert = _SHAPES[self.row_format].convert
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            row |= {field: _at(row, steps) for field, steps in self.places} if self.places else {}
            converted = convert(row)
            for field, column in columns.items():
                column.append(converted.get(field))
        return columns


@dataclass(frozen=True)
class _Shape:
    """A way to write rows: the columns it needs, those that it makes with their types, and how one row is converted."""

    needs: Callable[[Mapping[str, Any]], list[str]]
    features: Callable[[Mapping[str, Any]], dict[str, Any]]
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def _recognise(features: Mapping[str, Any]) -> Format:
    """How rows are written, from their columns. HH-RLHF's texts look like any other: they are read on request only."""
    if "prompt" in features:
        return "pairs"
    if "conversations" in features and _is_from_value(features.get("chosen")):
        return "sharegpt"
    if "instruction" in features and (_is_text(features.get("chosen")) or _is_two_outputs(features)):
        return "alpaca"
    return "pairs"


def _is_from_value(feature: Any) -> bool:
    inside = feature.feature if isinstance(feature, List | LargeList) else feature
    return isinstance(inside, Json) or (isinstance(inside, dict) and "from" in inside)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_two_outputs(features: Mapping[str, Any]) -> bool:
    """LLaMA-Factory's older ranking rows: `output` is [chosen, rejected]."""
    output = features.get("output")
    return "chosen" not in features and isinstance(output, List | LargeList) and _is_text(output.feature)


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
    turns = row.get("prompt", row.get("conversations"))
    if turns is None:
        return row | {"prompt": None, "chosen": None, "rejected": None}
    answers = {
        side: None if row[side] is None else [_message(turn) for turn in _listed(row[side])]
        for side in ("chosen", "rejected")
    }
    prompt = _with_system(row, [_message(turn) for turn in _listed(turns)])
    return row | answers | {"prompt": prompt, "tools": _tools_text(row)}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _message(turn: Any) -> Message:
    """A `from`/`value` turn as a message; one that cannot be read has no role or no content, and its row is dropped."""
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
    """The row's tools as JSON text, each as {"type": "function", "function": ...}, the form that templates take."""
    tools = _parsed(row.get("tools") or None)
    if not isinstance(tools, list):  # text that is no JSON is left to tokenization, which drops the row
        return None if tools is None else tools if isinstance(tools, str) else json.dumps(tools)
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False)


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "chosen" not in row and isinstance(row.get("output"), list) and len(row["output"]) == 2:
        chosen, rejected = row["output"]
    prompt: list[Message] = []
    for turn in row.get("history") or []:
        user, assistant = turn if isinstance(turn, list) and len(turn) == 2 else (None, None)
        prompt += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    texts = (row.get("prompt", row.get("instruction")), row.get("input"))
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
    "pairs": _Shape(lambda features: [], lambda features: {}, lambda row: row),
    "sharegpt": _Shape(
        lambda features: ["prompt" if "prompt" in features else "conversations", "chosen", "rejected"],
        _chat_features,
        _from_sharegpt,
    ),
    "alpaca": _Shape(
        lambda features: [
            "prompt" if "prompt" in features else "instruction",
            *([] if _is_two_outputs(features) else ["chosen", "rejected"]),
        ],
        _chat_features,
        _from_alpaca,
    ),
    "hh_rlhf": _Shape(lambda features: ["chosen", "rejected"], lambda features: PAIR_OF_MESSAGES, _from_hh_rlhf),
}
