"""Old keys of the official SimPO files and the alignment handbook, and how each is translated to today's keys.

The meaning of these keys has not changed, so those files load as they are; each translation gives a notice. Keys whose
meaning or unit differs between trainers are errors, see `train/other_trainers.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..baselines.settings import own_keys
from ..train.other_trainers import as_text
from .file import Entry, Layer


@dataclass(frozen=True)
class _Reading:
    """Today's keys and values for an old key (none if `values` is empty), and a note for the reader.

    `undoes` are values of earlier layers that the key switches off, None for any value.
    """

    values: dict[str, Any]
    note: str = ""
    undoes: dict[str, Any] = field(default_factory=dict)


class _Unreadable(Exception):
    """The value cannot be translated; the text says why and what to do."""


def _renamed(name: str, note: str = "") -> Callable[[Any], _Reading]:
    return lambda value: _Reading({name: value}, note)


def _without_effect(reason: str) -> Callable[[Any], _Reading]:
    return lambda value: _Reading({}, reason)


def _off(reason: str, remedy: str) -> Callable[[Any], _Reading]:
    """Returns the reading of a key that may only be switched off, because there is nothing to switch on."""

    def read(value: Any) -> _Reading:
        if value:
            raise _Unreadable(f"{reason}. {remedy}")
        return _Reading({}, reason)

    return read


def _torch_dtype(value: Any) -> _Reading:
    if value is None:
        return _Reading({}, "null meant float32 weights, and weights that train are float32", {"dtype": None})
    return _Reading({"dtype": value})


def _evaluation_strategy(value: Any) -> _Reading:
    return _Reading({"eval_strategy": "no" if value is False else value})  # YAML reads a bare `no` as false


def _warmup_ratio(value: Any) -> _Reading:
    if isinstance(value, int | float) and value >= 1:
        raise _Unreadable(f"a share of the steps is below 1, found {value}. Write warmup_steps and their number")
    return _Reading({"warmup_steps": value}, "below 1 it is a share of all steps")


def _flash_attention(value: Any) -> _Reading:
    if value:
        return _Reading({"attn_implementation": "flash_attention_2"})
    return _Reading({}, "it is off", {"attn_implementation": "flash_attention_2"})


def _remote_code(value: Any) -> _Reading:
    runs = "will run here" if value else "is not run"
    return _Reading(
        {"model_init_kwargs": {"trust_remote_code": bool(value)}}, f"code from the model's repository {runs}"
    )


def _save_safetensors(value: Any) -> _Reading:
    if value is False:
        raise _Unreadable("weights are always saved as safetensors. Leave it out")
    return _Reading({}, "weights are always saved as safetensors")


def _code_revision(value: Any) -> _Reading:
    return _Reading({} if value is None else {"model_init_kwargs": {"code_revision": value}}, "")


_REFERENCE_FREE = _without_effect("SimPO has no reference model")

# The function that reads the value, for each key.
_AGED: dict[str, Callable[[Any], _Reading]] = {
    "torch_dtype": _torch_dtype,
    "evaluation_strategy": _evaluation_strategy,
    "warmup_ratio": _warmup_ratio,
    "preprocessing_num_workers": _renamed("dataset_num_proc"),
    "use_flash_attention_2": _flash_attention,
    "trust_remote_code": _remote_code,
    "model_code_revision": _code_revision,
    "base_model_revision": _off(
        "an adapter's base is loaded from the folder or name that its adapter_config.json gives",
        "Write the revision there (`revision`), and leave base_model_revision out",
    ),
    "no_cuda": _renamed("use_cpu"),
    "hub_model_revision": _renamed("hub_revision"),
    "group_by_length": _without_effect("pairs are ordered by the trainer's own sampler"),
    "save_safetensors": _save_safetensors,
    "overwrite_output_dir": _without_effect("a run in a used output_dir starts over, with a warning"),
    "logging_dir": _without_effect("set the environment variable TENSORBOARD_LOGGING_DIR for TensorBoard"),
    "truncation_side": _without_effect("truncation_mode chooses which end of a too long prompt is kept"),
    "text_column": _without_effect("it is for plain texts, not for pairs"),
    "label_pad_token_id": _without_effect("scored tokens are marked by position, not by an id"),
    "padding_value": _without_effect("padding is masked by length, whatever its id"),
    "max_target_length": _without_effect("it is for encoder-decoder models"),
    "is_encoder_decoder": _off("only decoder models are trained", "Choose a causal language model"),
    "generate_during_eval": _off("answers are not sampled during evaluation", "Leave it out"),
    "precompute_ref_log_probs": _REFERENCE_FREE,
    "ref_model_init_kwargs": _REFERENCE_FREE,
    "sync_ref_model": _REFERENCE_FREE,
}


_NEEDED_COLUMNS = _without_effect("the trainer gets the columns that it needs, and no others")

# Keys of the handbook's files for other methods.
_AGED_OF: dict[str, dict[str, Callable[[Any], _Reading]]] = {
    "dpo": {"remove_unused_columns": _NEEDED_COLUMNS},
    "sft": {"remove_unused_columns": _NEEDED_COLUMNS, "max_seq_length": _renamed("max_length")},
}

# A key of the handbook's scripts, and of the official ones that grew out of them, which no other trainer has.
_OF_HANDBOOK = "preprocessing_num_workers"

# Old keys that --key and --no-key switch on and off on a command line.
SWITCHES = {
    *("use_flash_attention_2", "trust_remote_code", "no_cuda", "group_by_length", "save_safetensors"),
    *("overwrite_output_dir", "generate_during_eval", "is_encoder_decoder", "precompute_ref_log_probs"),
}


def translate(layer: Layer, method: str = "simpo") -> tuple[Layer, list[str]]:
    """Returns the layer with today's keys instead of old ones, and one notice for each translated key.

    Args:
        layer: the layer to translate.
        method: the recipe's method; a key that this method has under the same name is not old.
    """
    aged = {key: read for key, read in (_AGED | _AGED_OF.get(method, {})).items() if key not in own_keys(method)}
    entries: dict[str, Entry] = {key: entry for key, entry in layer.entries.items() if key not in aged}
    problems, notices = list(layer.problems), []
    undone: dict[str, Any] = {}
    for key, entry in layer.entries.items():
        if key not in aged:
            continue
        try:
            reading = aged[key](entry.value)
        except _Unreadable as unreadable:
            problems.append(f"{entry.place}{key}: {unreadable}.")
            continue
        for name, value in reading.values.items():
            earlier = entries.get(name)
            if earlier and isinstance(earlier.value, dict) and isinstance(value, dict):
                value = earlier.value | value
            elif earlier:
                problems.append(f"{entry.place}{key} and {name} are both given; keep {name}.")
                continue
            text = entry.text if value is entry.value else None
            joins = isinstance(value, dict) and name not in layer.entries
            entries[name] = Entry(value, f"{entry.origin} ({key})", entry.place, text, joins)
        undone |= reading.undoes
        notices.append(f"{entry.place}{key}: {as_text(entry.value)} {_read_as(reading)}")
    if _OF_HANDBOOK in aged and _OF_HANDBOOK in layer.entries and "overlong" not in layer.entries:
        # Its lengths were chosen for the rule of that code.
        if length := layer.entries.get("max_prompt_length"):
            entries["overlong"] = Entry("official", f"{length.origin} (max_prompt_length)", length.place)
            notices.append(f"{length.place}max_prompt_length is read with overlong: official, the rule of that code")
    return Layer(entries, problems, undone), notices


def _read_as(reading: _Reading) -> str:
    if not reading.values:
        return "is left out" + (f": {reading.note}" if reading.note else "")
    now = ", ".join(f"{name}: {as_text(value)}" for name, value in reading.values.items())
    return f"is read as {now}" + (f" ({reading.note})" if reading.note else "")
