"""How rows are written, told from their columns: pairs, ranked answers, ShareGPT, Alpaca; and hidden prompts."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from datasets import Json, LargeList, List, Value

from ..errors import SimPOError
from .fields import has_ranked_answers
from .places import SAMPLE
from .sources import Rows

Format: TypeAlias = Literal["pairs", "sharegpt", "alpaca", "hh_rlhf"]
# Columns beside two texts without `prompt` that are likely to hold it.
_HIDDEN_PROMPTS = ("question", "instruction", "query", "input", "messages", "conversations", "history", "context")


def refuse_hidden_prompt(features: Mapping[str, Any], name: str) -> None:
    """Refuses texts whose prompt seems to be in a column of another name: they would be trained on without it."""
    likely = [column for column in _HIDDEN_PROMPTS if column in features]
    ranked = has_ranked_answers(features)
    answer = _item_type(features["responses"]) if ranked else features.get("chosen")
    if "prompt" in features or not likely or not is_text(answer):
        return
    column = likely[0]
    if is_text(features[column]):
        change = f"Set `columns: {{prompt: {column}}}`, and dataset_format: alpaca to make conversations of them"
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
    """How rows are written, from their columns. HH-RLHF's texts look like any other: they are read on request only."""
    if "prompt" in features:
        return "pairs"
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
    """Whether answers are written as ShareGPT's turns, or each as one message; not as a whole conversation."""
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
    """Whether scores are lists that may be of numbers, but are written otherwise."""
    item = _item_type(feature)
    return isinstance(item, Json) or (isinstance(feature, List | LargeList) and is_text(item))


def is_text(feature: Any) -> bool:
    """Whether a column of this type holds texts."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def is_two_outputs(features: Mapping[str, Any]) -> bool:
    """LLaMA-Factory's older ranking rows: `output` is [chosen, rejected]."""
    output = features.get("output")
    return "chosen" not in features and isinstance(output, List | LargeList) and is_text(output.feature)


def listed(value: Any) -> list:
    """The value as a list: itself, or alone in one."""
    return value if isinstance(value, list) else [value]
