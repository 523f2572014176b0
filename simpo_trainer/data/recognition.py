"""Recognises the format of rows by their columns: pairs, ranked answers, ShareGPT, Alpaca; and hidden prompts."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from datasets import Json, LargeList, List, Value

from ..errors import SimPOError
from .fields import has_ranked_answers
from .places import SAMPLE, Place, value_at
from .sources import Rows

Format: TypeAlias = Literal["pairs", "chat", "sharegpt", "alpaca", "hh_rlhf"]
# Columns beside two texts without `prompt` that are likely to hold it.
HIDDEN_PROMPTS = (
    "question",
    "instruction",
    "query",
    "input",
    "messages",
    "conversations",
    "conversation",
    "history",
    "context",
)
# Columns that may hold the prompt as messages, the likeliest first.
MESSAGE_COLUMNS = ("conversations", "messages", "conversation", "history")


def messages_prompt(rows: Rows, places: Mapping[str, Place], features: Mapping[str, Any]) -> str | None:
    """Returns the column that holds the prompt as messages, beside answers of one message each; None without one.

    Args:
        places: the places of fields that are not in the columns of their names.
        features: the types of all columns, and of the fields in `places`.
    """
    columns = [column for column in MESSAGE_COLUMNS if column in features and not is_text(features[column])]
    if not columns or "prompt" in features:
        return None
    sample = list(rows.with_format(None).take(SAMPLE))
    if not _are_single_messages(sample, places):
        return None
    columns = [column for column in columns if any(_asks(row.get(column)) for row in sample)]
    # Earlier turns, where what is asked now stands beside them.
    asked = any(is_text(features.get(column)) for column in HIDDEN_PROMPTS)
    return next((column for column in columns if column != "history" or not asked), None)


def _are_single_messages(sample: list[dict[str, Any]], places: Mapping[str, Place]) -> bool:
    """Returns whether each answer is one assistant message, alone or in a list."""
    answers = []
    for row in sample:
        for field in ("chosen", "rejected", "responses"):
            value = value_at(row, places[field].steps) if field in places else row.get(field)
            given = listed(value) if field == "responses" else [value]
            answers += [answer for answer in given if answer is not None]
    turns = [listed(answer) for answer in answers]
    return bool(turns) and all(len(answer) == 1 and _speaker(answer[0]) in _ANSWERING for answer in turns)


def _asks(value: Any) -> bool:
    """Returns whether a value is messages of which the last waits for an answer."""
    speaker = _speaker(value[-1]) if isinstance(value, list) and value else None
    return speaker is not None and speaker not in _ANSWERING


_ANSWERING = ("assistant", "gpt", "function_call")


def _speaker(turn: Any) -> Any:
    return turn.get("role") or turn.get("from") if isinstance(turn, dict) else None


def refuse_prompt_elsewhere(rows: Rows, places: Mapping[str, Place], features: Mapping[str, Any], name: str) -> None:
    """Refuses answers of one message each whose prompt seems to be in a column of another name."""
    likely = [column for column in HIDDEN_PROMPTS if column in features]
    if "prompt" in features or not likely or is_text(features.get("chosen")):
        return
    column = messages_prompt(rows, places, features)
    texts = [column for column in likely if features[column] is None or is_text(features[column])]
    if column is None and texts and _are_single_messages(list(rows.with_format(None).take(SAMPLE)), places):
        column = texts[0]
    if column is None:
        return
    found = f"{name}: each answer is one message and there is no column 'prompt'"
    if column in texts and column != "history" and "history" in features:
        raise SimPOError(
            f"{found}; the columns 'history' and {column!r} seem to hold it. Write both as one list of messages in a "
            "column 'prompt'."
        )
    raise SimPOError(
        f"{found}; the column {column!r} seems to hold it. Name it: in a recipe by `columns: {{prompt: {column}}}`, "
        "else by renaming it to 'prompt'."
    )


def refuse_hidden_prompt(rows: Rows, places: Mapping[str, Place], features: Mapping[str, Any], name: str) -> None:
    """Refuses answers whose prompt seems to be in a column of another name: they would be trained on without it."""
    refuse_prompt_elsewhere(rows, places, features, name)
    likely = [column for column in HIDDEN_PROMPTS if column in features]
    ranked = has_ranked_answers(features)
    answer = _item_type(features["responses"]) if ranked else features.get("chosen")
    if "prompt" in features or not likely or not is_text(answer):
        return
    column = likely[0]
    if is_text(features[column]):
        change = f"Set `columns: {{prompt: {column}}}`, and dataset_format: chat to make conversations of them"
        if "system" in features:
            change += ", with the column 'system' as their system message; texts leave that out"
    else:
        place = "" if column == "conversations" else f", and `columns: {{prompt: {column}}}`,"
        change = f"Set dataset_format: sharegpt{place} to make conversations of them"
    answers = "responses are" if ranked else "chosen and rejected are"
    or_else = "" if ranked else " If the answers hold the prompt themselves, set dataset_format: pairs."
    raise SimPOError(
        f"{name}: {answers} texts without a column 'prompt', and a column {column!r} is there, which "
        f"seems to hold it. {change}.{or_else}"
    )


def recognise_format(rows: Rows, features: Mapping[str, Any]) -> Format:
    """Returns the format of rows by their columns. HH-RLHF's texts look like any other and are read on request only."""
    if "prompt" in features:
        turn = _item_type(features["prompt"])
        return "sharegpt" if isinstance(turn, dict) and {"from", "value"} <= turn.keys() else "pairs"
    ranked = has_ranked_answers(features)
    if "conversations" in features and _is_one_turn(rows, features, ranked):
        return "sharegpt"
    answer = _item_type(features["responses"]) if ranked else features.get("chosen")
    if "instruction" in features and (is_text(answer) or is_two_outputs(features)):
        return "alpaca"
    return "pairs"


def _item_type(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List | LargeList) else feature


def _is_one_turn(rows: Rows, features: Mapping[str, Any], ranked: bool) -> bool:
    """Returns whether answers are written as ShareGPT's turns, or each as one message; not as a whole conversation."""
    column = "responses" if ranked else "chosen"
    feature = _item_type(features[column]) if ranked else features.get(column)
    item = _item_type(feature)
    if isinstance(item, dict):
        return "from" in item or ("role" in item and item is feature)
    if not isinstance(item, Json):
        return False
    values = [row[column] for row in rows.with_format(None).take(SAMPLE) if row.get(column)]
    values = [answer for value in values for answer in listed(value)] if ranked else values
    turns = [turn for value in values for turn in listed(value) if isinstance(turn, dict)]
    return any("from" in turn for turn in turns) or (bool(turns) and all(isinstance(value, dict) for value in values))


def may_be_numbers(feature: Any) -> bool:
    """Returns whether scores are lists that may be of numbers, but are written otherwise."""
    item = _item_type(feature)
    return isinstance(item, Json) or (isinstance(feature, List | LargeList) and is_text(item))


def is_text(feature: Any) -> bool:
    """Returns whether a column of this type holds texts."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def is_two_outputs(features: Mapping[str, Any]) -> bool:
    """LLaMA-Factory's older ranking rows: `output` is [chosen, rejected]."""
    output = features.get("output")
    return "chosen" not in features and isinstance(output, List | LargeList) and is_text(output.feature)


def listed(value: Any) -> list:
    """The value as a list: itself, or alone in one."""
    return value if isinstance(value, list) else [value]
