"""Read recipes (YAML files that may extend each other) and overrides from the command line into checked settings.

A recipe's keys are the fields of `SimPOConfig`, `DataConfig` and `ModelKeys`. Keys and types are checked before
any of these classes is built, because building `SimPOConfig` initialises devices. One error lists all problems.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

from trl import get_quantization_config

from ..baselines.settings import ARGUMENTS, BaselineArguments, MethodConfig, build_arguments
from ..data.settings import DataConfig, data_problems
from ..environment import has_package
from ..errors import SimPOError
from ..loss.objective import settled_loss
from ..record.methods import METHODS
from ..tokens.settings import settled_rows
from ..train.config import SimPOConfig
from ..train.other_trainers import as_text
from .adapter import is_of_adapter, settle_adapter, settle_rate
from .aged_keys import SWITCHES, translate
from .answer_keys import section_problems
from .file import Entry, Layer, merge_layers, read_layers, scalar
from .keys import KEYS, check_entries, keys_of, takes_bool
from .method import fit_to_method, method_of
from .model_keys import ModelKeys
from .paths import find_recipe
from .written_for import fit_to_loss


@dataclass
class Recipe:
    """A checked recipe: settings for training, model and data, and where each was given."""

    training: SimPOConfig
    model: ModelKeys
    data: DataConfig
    path: Path
    settings: dict[str, Any]  # the values of the files and the overrides, converted
    origins: dict[str, str]  # key of `settings` to where it was given: "file:line" or "command line"
    overrides: dict[str, str]  # key to text, as on a command line
    notices: list[str]  # sentences about keys that were translated or ignored
    method: str = "simpo"
    baseline: BaselineArguments | None = None  # the arguments of trl's trainer, under another method

    def resolved(self) -> dict[str, Any]:
        """Returns all settings of a run, in the order of the classes that own them: given ones and defaults.

        Settings that the machine decides or that follow from others are left out, so that a file of these settings is
        the same recipe anywhere. So are secrets and settings without a value.
        """
        found = {}
        # Values of settings that a recipe leaves open.
        settled = settled_rows(self.training)
        settled["lora_dropout"] = self.model.lora_dropout  # 0 where dropout is disabled
        settled["lora_target_modules"] = self.model.lora_target_modules
        settled["learning_rate"] = self.training.settled().learning_rate
        if METHODS[self.method].is_simpo:
            settled |= settled_loss(self.training)
        if "global_batch_size" not in self.settings:  # else it depends on the number of processes
            settled["per_device_train_batch_size"] = self.training.train_batch_size
        for name, key in keys_of(self.method).items():
            default = settled.get(name, key.default)
            value = self.settings.get(name, default if self._counts(name) else None)
            if value is None and name in self.settings:  # null leaves a setting open
                value = settled.get(name)
            if name.endswith("model_init_kwargs") and value:
                value = {kwarg: given for kwarg, given in value.items() if kwarg != "token"}
            if value is not None and name not in _SECRETS:
                found[name] = value.value if isinstance(value, Enum) else value
        return found

    def _counts(self, name: str) -> bool:
        """Returns whether the default of a key is used in this run."""
        if name == "gradient_accumulation_steps":
            return "global_batch_size" not in self.settings
        if is_of_adapter(name):
            return self.model.use_peft
        if "bnb_" in name:
            return self.model.load_in_4bit
        return name not in _DECIDED_BY_MACHINE


_SECRETS = {"hub_token"}
_DECIDED_BY_MACHINE = {"use_cpu", "local_rank"}
_REQUIRED = {
    "model_name_or_path": "the model to start from, such as Qwen/Qwen3-0.6B or a folder",
    "output_dir": "the folder that checkpoints and the trained model go to, such as runs/first",
}


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe, apply `overrides` and check everything that can be checked without a model or a dataset.

    Args:
        path: the YAML file, or the name of a recipe that comes with the package ("paper/llama3-8b-instruct").
        overrides: values that replace the file's: command-line words (`--key value`, `--key=value`, `--flag`,
            `--no-flag`) or a mapping of keys to values.

    Raises:
        SimPOError: the file cannot be read, or keys or values are wrong; one message names all problems.
    """
    return _recipe(check_recipe(path, overrides))


def recipe_of(values: Mapping[str, Any], method: str) -> Recipe:
    """Returns a recipe that has no file.

    Args:
        values: keys to values of their types, as in the settings of a recipe that was loaded.
        method: the method that it is for.

    Raises:
        SimPOError: the values do not fit together.
    """
    settle = METHODS[method].load("settle")
    settled = settle(dict(values))[0] if settle else dict(values)
    return _recipe(ReadRecipe(Path("recipe"), settled, {}, {}, [], method))


def _recipe(read: "ReadRecipe") -> Recipe:
    training, model, data, baseline = _build(read)
    given = (read.values, read.origins, read.overrides, read.notices)
    return Recipe(training, model, data, read.path, *given, read.method, baseline)


@dataclass
class ReadRecipe:
    """The result of :func:`check_recipe`: the fields of a :class:`Recipe` before its settings are built."""

    path: Path
    values: dict[str, Any]
    origins: dict[str, str]
    overrides: dict[str, str]
    notices: list[str]
    method: str


def check_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> ReadRecipe:
    """Like :func:`load_recipe`, but check keys and types only: building the settings would initialise devices."""
    path = find_recipe(path)
    texts, bad_words = parse_overrides(overrides)
    typed = {key: Entry(scalar(text), "command line", "command line: ", text) for key, text in texts.items()}
    layers = [*read_layers(path), Layer(typed, bad_words)]
    method = method_of(layers)
    translated = [translate(layer, method) for layer in layers]
    fitted, told = fit_to_method([layer for layer, _ in translated])
    if METHODS[method].is_simpo:
        fitted, of_loss = fit_to_loss(fitted)
        told += of_loss
    entries = merge_layers(fitted)
    values, bad_entries = check_entries(entries, keys_of(method))
    problems = [*(problem for layer in fitted for problem in layer.problems), *bad_entries]
    problems += [f"{key} is missing: {text}." for key, text in _REQUIRED.items() if _is_empty(entries.get(key))]
    known = all(key in values for key in entries if key in KEYS and KEYS[key].owner is DataConfig)
    if known and "dataset_mixture" not in entries:
        problems += data_problems(values)
    problems += _streaming_problems(values, method)
    problems += section_problems(values)
    notices = [*(notice for _, found in translated for notice in found), *told]
    if settle := METHODS[method].load("settle"):
        values, unsettled, hints = settle(values)
        problems += unsettled
        notices += hints
    if problems:
        head = f"{path}: " if len(problems) == 1 else f"{path}: {len(problems)} problems\n  "
        raise SimPOError(head + "\n  ".join(problems))
    origins = {key: entry.origin for key, entry in entries.items()}
    return ReadRecipe(path, values, origins, texts, notices, method)


def _streaming_problems(values: Mapping[str, Any], method: str) -> list[str]:
    if not values.get("streaming"):
        return []
    if not METHODS[method].is_simpo:
        return [
            f"streaming is true, but method {method} needs the whole training set before it starts, to leave out the "
            "same rows as SimPO. Remove streaming."
        ]
    if values.get("max_steps", -1) > 0:
        return []
    return ["streaming does not tell how many pairs there are. Set max_steps, the number of optimiser steps."]


def _is_empty(entry: Entry | None) -> bool:
    return entry is None or entry.value in (None, "")


def parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Returns the text of each key, the last one if it is repeated, and a problem for each word that is no override."""
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
        elif key not in KEYS and key.startswith("no_") and (takes_bool(key[3:]) or key[3:] in SWITCHES):
            texts[key[3:]] = "false"
        else:
            texts[key] = "true"
    return texts, problems


def _build(read: ReadRecipe) -> tuple[SimPOConfig, ModelKeys, DataConfig, BaselineArguments | None]:
    path, values, keys = read.path, read.values, keys_of(read.method)
    parts = {
        owner: {key: value for key, value in values.items() if keys[key].owner is owner}
        for owner in (SimPOConfig, ModelKeys, DataConfig, MethodConfig, *ARGUMENTS.values())
    }
    try:
        model = ModelKeys(**parts[ModelKeys])
        model.model_name_or_path = os.path.expanduser(values["model_name_or_path"])
        data = DataConfig(**parts[DataConfig])
        _check_adapter(model, parts[ModelKeys])
        if not METHODS[read.method].is_simpo:
            parts[SimPOConfig].pop("neftune_noise_alpha", None)  # refused there for SimPO's layouts; trl's has its own
        if parts[SimPOConfig].get("learning_rate", 0) is None:
            del parts[SimPOConfig]["learning_rate"]
        usual = METHODS[read.method].usual
        rate, told = settle_rate(model, usual, values)
        _check_deepspeed(values)
        training = SimPOConfig(**dict(usual) | rate | parts[SimPOConfig])
        read.notices.extend(told)
        settle_adapter(model, parts[ModelKeys], training)
        training.model_init_kwargs = _model_init_kwargs(model, training)
        baseline = None if METHODS[read.method].is_simpo else build_arguments(read.method, training, values)
    except SimPOError as error:
        raise SimPOError(f"{path}: {error}") from None
    except (ValueError, TypeError, OSError, ImportError) as error:  # raised by transformers and trl
        raise SimPOError(f"{path}: {error}") from error
    return training, model, data, baseline


def _check_deepspeed(values: Mapping[str, Any]) -> None:
    if values.get("deepspeed") and not has_package("deepspeed"):  # else transformers' own error, a garbled line
        raise SimPOError("deepspeed is set, but not installed. Run `pip install deepspeed`, or leave the key out.")


def _check_adapter(model: ModelKeys, given: Mapping[str, Any]) -> None:
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        raise SimPOError("load_in_4bit and load_in_8bit freeze the model; something must train. Set use_peft: true.")
    unused = [key for key in given if is_of_adapter(key)]
    if unused and "use_peft" not in given:
        raise SimPOError(
            f"{', '.join(unused)} would do nothing: the whole model trains. Set use_peft to true or false."
        )


def _model_init_kwargs(model: ModelKeys, training: SimPOConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `from_pretrained`: those of the recipe's model keys and `model_init_kwargs`."""
    compute = "bfloat16" if training.settled().bf16 else "float16" if training.fp16 else "float32"
    ours: dict[str, Any] = {
        "revision": None if model.model_revision == "main" else model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
    }
    if has_package("bitsandbytes"):  # if it is missing, `packages.py` raises an error at the start of training
        dtype = cast(Any, model.dtype or compute)
        # FSDP splits weights of a floating type alone; the bits are the same in any.
        splits = os.environ.get("ACCELERATE_USE_FSDP") == "true" and dtype != "auto"
        storage = model.bnb_4bit_quant_storage or (dtype if splits else None)
        quantized = replace(model, dtype=dtype, bnb_4bit_quant_storage=storage)
        ours["quantization_config"] = get_quantization_config(quantized)
    ours = {key: value for key, value in ours.items() if value is not None}
    given = training.model_init_kwargs or {}
    assert isinstance(given, dict)  # checked by type above
    if twice := sorted(ours.keys() & given.keys()):
        raise SimPOError(f"{', '.join(twice)} is given both as a key and inside model_init_kwargs; keep one.")
    return ours | given
