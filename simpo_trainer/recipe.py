"""Recipes: one flat YAML file, and overrides from the command line, to checked settings.

A recipe's keys are the fields of `SimPOConfig`, `DataConfig` and trl's `ModelConfig`. Keys and types are checked before
any of them is built, because building `SimPOConfig` initialises devices, and all problems are reported at once.
"""

import difflib
import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import SchedulerType
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, get_quantization_config

from .config import SimPOConfig
from .errors import SimPOError
from .other_trainers import OTHER_TRAINERS, as_text
from .preferences import DataConfig


@dataclass
class Recipe:
    """A checked recipe: settings for training, model and data, and what they were read from."""

    training: SimPOConfig
    model: ModelConfig
    data: DataConfig
    path: Path
    source: dict[str, Any]  # the file's mapping as written, before overrides
    overrides: dict[str, str]  # key to text, as on a command line


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read the recipe at `path`, apply `overrides` and check everything that can be checked without a model.

    Args:
        path: the YAML file.
        overrides: values that replace the file's: command-line words (`--key value`, `--key=value`, `--flag`,
            `--no-flag`) or a mapping of keys to values.

    Raises:
        SimPOError: the file cannot be read, or keys or values are wrong; one message names all problems.
    """
    path = Path(path)
    source, lines, problems = _read(path)
    texts, bad_words = _parse_overrides(overrides)
    problems += bad_words
    entries = {key: _Entry(value, f"line {lines[key]}: " if key in lines else "") for key, value in source.items()}
    entries |= {key: _Entry(_scalar(text), "command line: ", text) for key, text in texts.items()}
    values, bad_entries = _check(entries)
    problems += bad_entries
    if problems:
        head = f"{path}: " if len(problems) == 1 else f"{path}: {len(problems)} problems\n  "
        raise SimPOError(head + "\n  ".join(problems))
    training, model, data = _build(path, values)
    return Recipe(training, model, data, path, source, texts)


# Reading YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML that notes repeated keys, of which PyYAML silently keeps the last, and reads 5e-7 as a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if earlier := first.get(key.value):
                self.repeated.append(f"line {line}: {key.value} is given twice, first on line {earlier}. Keep one.")
            first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a dot in a number with an exponent; without this, 1e-8 inside a nested mapping would stay text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """The mapping in the file, the line of each of its keys, and keys given twice."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise SimPOError(f"recipe {path} not found{_nearest_files(path)}") from None
    except OSError as error:
        raise SimPOError(f"recipe {path} cannot be read: {error.strerror}. Name one YAML file.") from None
    except UnicodeDecodeError as error:
        raise SimPOError(f"recipe {path} is not a text file in UTF-8: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SimPOError(f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        raise SimPOError(f"{path} is empty; a recipe is a list of `key: value` lines.")
    if not isinstance(node, yaml.MappingNode):
        raise SimPOError(f"{path} holds a {type(content).__name__}; a recipe is a mapping, one `key: value` a line.")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return {str(key): value for key, value in content.items()}, lines, loader.repeated


def _nearest_files(path: Path) -> str:
    files = [*path.parent.glob("*.y*ml"), *Path("recipes").rglob("*.y*ml")]
    by_name = {file.name: file for file in files}
    names = difflib.get_close_matches(path.name, by_name, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(by_name[name]) for name in names)}?" if names else ". Check the path."


# Overrides


def _parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Keys to texts, the last one winning, and the words that are no override."""
    if isinstance(overrides, Mapping):
        return {key: as_text(value) for key, value in overrides.items()}, []
    texts: dict[str, str] = {}
    problems: list[str] = []
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            hint = "overrides are --key value, and a list is --key '[a, b]'"
            problems.append(f"command line: unexpected {word!r}; {hint}")
            continue
        key, equals, text = word[2:].partition("=")
        key = key.replace("-", "_")
        if equals:
            texts[key] = text
        elif words and not words[0].startswith("--"):
            texts[key] = words.pop(0)
        elif key not in KEYS and key.startswith("no_") and KEYS.get(key[3:]) and _takes_bool(KEYS[key[3:]].hint):
            texts[key[3:]] = "false"
        else:
            texts[key] = "true"
    return texts, problems


def _scalar(text: str) -> Any:
    """The value that YAML reads in `text`; what it reads as text, or not at all, stays as it is, `#` included."""
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text
    return text if isinstance(value, str) and text[:1] not in "'\"" else value


# Keys and types


@dataclass(frozen=True)
class Key:
    """A key that a recipe may hold: the class that owns it, its field, and the type a recipe must give."""

    owner: type
    field: Field
    hint: Any


@dataclass(frozen=True)
class _Entry:
    value: Any
    place: str
    text: str | None = None  # as typed on the command line


# Where a recipe takes more, or less, than the field's annotation says.
_OWN_HINTS: dict[str, Any] = {
    "fsdp": str | bool | None,  # annotated as text for the sake of argparse
    "lr_scheduler_type": SchedulerType,
    "model_init_kwargs": dict[str, Any] | None,
    "resume_from_checkpoint": str | bool | None,  # true: the last checkpoint
}


def _keys() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for owner in (SimPOConfig, DataConfig, ModelConfig):
        hints = get_type_hints(owner)
        for field in fields(owner):
            keys[field.name] = Key(owner, field, _OWN_HINTS.get(field.name, _narrow(hints[field.name], field)))
    return keys


def _narrow(hint: Any, field: Field) -> Any:
    """The type with its choices: `Strategy | str` becomes `Strategy`, and choices in the metadata a `Literal`."""
    enums = [part for part in get_args(hint) if isinstance(part, type) and issubclass(part, Enum)]
    if enums:
        return enums[0]
    if choices := field.metadata.get("choices"):
        literal: Any = Literal[tuple(choices)]
        return literal | None if NoneType in get_args(hint) else literal
    return hint


KEYS = _keys()
_REQUIRED = {
    "model_name_or_path": "the model to start from, such as Qwen/Qwen3-0.6B or a folder",
    "dataset_name": "the preference pairs to train on",
    "output_dir": "the folder that checkpoints and the trained model go to, such as runs/first",
}


def _check(entries: Mapping[str, _Entry]) -> tuple[dict[str, Any], list[str]]:
    """Converted values of the known keys, and what is wrong with the rest."""
    recipe = {key: entry.value for key, entry in entries.items()}
    values: dict[str, Any] = {}
    problems = []
    for key, entry in entries.items():
        foreign = OTHER_TRAINERS[key](entry.value, recipe) if key in OTHER_TRAINERS else None
        if foreign:
            problems.append(f"{entry.place}{key}: {foreign}.")
        elif key not in KEYS:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1)
            problems.append(f"{entry.place}unknown key {key}" + (f"; did you mean {near[0]}?" if near else ""))
        else:
            try:
                values[key] = _convert(entry, KEYS[key].hint)
            except ValueError:
                found = json.dumps(entry.value, default=str, ensure_ascii=False)
                problems.append(f"{entry.place}{key} is {found}; it must be {_needed(KEYS[key].hint, entry.value)}")
    problems += [f"{key} is missing: {text}." for key, text in _REQUIRED.items() if recipe.get(key) in (None, "")]
    return values, problems


def _convert(entry: _Entry, hint: Any) -> Any:
    """The value in the type that `hint` asks for. Raises ValueError where it does not fit."""
    value = entry.value
    candidates = [value]
    if entry.text is not None:
        candidates.append(entry.text)  # --run_name 7 is text
    if value is False:
        candidates.append("no")  # YAML reads `eval_strategy: no` as false
    if isinstance(value, str):
        candidates.append([value])  # lora_target_modules: all-linear
    adapter = TypeAdapter(hint)
    for candidate in candidates:
        if isinstance(candidate, bool) and not _takes_bool(hint):
            continue  # pydantic would read true as the number 1
        if isinstance(candidate, float) and math.isnan(candidate):
            continue
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise ValueError(value)


def _takes_bool(hint: Any) -> bool:
    return hint in (bool, Any) or isinstance(hint, bool) or any(_takes_bool(part) for part in get_args(hint))


_TYPE_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "null"}


def _needed(hint: Any, value: Any) -> str:
    """What `hint` asks for, in words; of many choices only those near `value`."""
    choices = list(get_args(hint)) if get_origin(hint) is Literal else []
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
    if len(choices) > 12:
        near = difflib.get_close_matches(str(value), choices, n=3)
        return f"one of {len(choices)} names" + (f": did you mean {' or '.join(near)}" if near else "")
    if choices:
        return f"one of {', '.join(map(str, choices))}"
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    origin = get_origin(hint) or hint
    if origin in (list, dict):
        return "a list" if origin is list else "a mapping"
    return " or ".join(_needed(part, value) for part in get_args(hint)) or getattr(hint, "__name__", str(hint))


# Building


def _build(path: Path, values: dict[str, Any]) -> tuple[SimPOConfig, ModelConfig, DataConfig]:
    parts = {
        owner: {key: value for key, value in values.items() if KEYS[key].owner is owner}
        for owner in (SimPOConfig, ModelConfig, DataConfig)
    }
    try:
        # trl's default dtype is float32; unset must stay unset, because the trainer decides by what trains.
        model = ModelConfig(**{"dtype": None} | parts[ModelConfig])
        model.model_name_or_path = os.path.expanduser(values["model_name_or_path"])
        data = DataConfig(**parts[DataConfig])
        _check_adapter(model, parts[ModelConfig])
        training = SimPOConfig(**parts[SimPOConfig])
        _check_report_to(training)
        training.model_init_kwargs = _model_init_kwargs(model, training)
    except SimPOError as error:
        raise SimPOError(f"{path}: {error}") from None
    except (ValueError, TypeError, OSError, ImportError) as error:  # what transformers and trl find wrong
        raise SimPOError(f"{path}: {error}") from error
    return training, model, data


def _check_adapter(model: ModelConfig, given: Mapping[str, Any]) -> None:
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        raise SimPOError("load_in_4bit and load_in_8bit freeze the model; something must train. Set use_peft: true.")
    if (model.load_in_4bit or model.load_in_8bit) and importlib.util.find_spec("bitsandbytes") is None:
        raise SimPOError("load_in_4bit and load_in_8bit need bitsandbytes. Run `pip install bitsandbytes`.")
    unused = [key for key in given if key.startswith(("lora_", "use_rslora", "use_dora"))]
    if unused and "use_peft" not in given:
        raise SimPOError(
            f"{', '.join(unused)} would do nothing: the whole model trains. Set use_peft to true or false."
        )


def _check_report_to(training: SimPOConfig) -> None:
    """The trainer would notice only after the model is loaded."""
    installed = get_available_reporting_integrations()
    if missing := [name for name in training.report_to or [] if name not in installed]:
        raise SimPOError(
            f"report_to names {', '.join(missing)}, not installed here; installed: {', '.join(installed) or 'none'}. "
            f"Run `pip install {' '.join(missing)}`, or set report_to: none."
        )


def _model_init_kwargs(model: ModelConfig, training: SimPOConfig) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: what the recipe's model keys say, joined with its own."""
    compute = "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"
    ours = {
        "revision": None if model.model_revision == "main" else model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "quantization_config": get_quantization_config(replace(model, dtype=model.dtype or compute)),
    }
    ours = {key: value for key, value in ours.items() if value is not None}
    given = training.model_init_kwargs or {}
    assert isinstance(given, dict)  # checked by type above
    if twice := sorted(ours.keys() & given.keys()):
        raise SimPOError(f"{', '.join(twice)} is given both as a key and inside model_init_kwargs; keep one.")
    return ours | given
