"""Checks before an iteration: what would fail after hours is found before the first stage."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..answers.journal import identity_differences
from ..answers.model_source import base_of, source_fingerprint
from ..answers.requests import Prompt, hash_of
from ..answers.row_files import write_text
from ..data.settings import DataConfig
from ..errors import SimPOError
from ..knobs import harmless_knobs
from ..recipe.answer_keys import AnnotateSettings, GenerateSettings, read_section
from ..recipe.load import ReadRecipe
from ..record.folders import MANIFEST
from ..record.privacy import public_settings
from ..scores.scorers import check_one_scorer, load_scorer
from ..train.config import SimPOConfig
from ..train.identity import HARMLESS
from .files import IDENTITY
from .held_out_prompts import PromptSplit, split_prompts

# Settings of the sections that change no answer and no row; the scorer tells of itself.
_OF_ANSWERS = ("temperature", "top_p", "max_new_tokens", "engine")
_OF_ROWS = ("pairs", "least_gap", "decontaminate", "decontaminate_words")
_SECTIONS = {"generate", "annotate", "iterate"}
# Parts of the global batch, which decide it where it is not set.
_OF_BATCH = {"per_device_train_batch_size", "gradient_accumulation_steps"}


def check_iteration(recipe: ReadRecipe, rounds: int, output_dir: Path) -> PromptSplit:
    """Check that a recipe can be iterated in its folder, and return its prompts.

    The folder then holds what the iteration was begun with.

    Raises:
        SimPOError: a setting cannot be used, there is nothing to hold out, the scorer cannot be used, or the folder
            holds something else.
    """
    values = recipe.values
    generate = read_section(GenerateSettings, values.get("generate") or {})
    annotate = read_section(AnnotateSettings, values.get("annotate") or {})
    _check_settings(values, rounds)
    _check_generate(generate, values)
    _check_annotate(annotate, values)
    if (output_dir / MANIFEST).is_file():
        raise SimPOError(
            f"output_dir is {str(output_dir)!r}, which holds a run of `simpo train`. The rounds need a folder of their "
            "own: give another output_dir."
        )
    scorer = load_scorer(annotate)
    data = {each.name: values[each.name] for each in fields(DataConfig) if each.name in values}
    split = split_prompts(DataConfig(**data))
    identity = {
        **_trained_by(values),
        "the start model": source_fingerprint(str(values["model_name_or_path"]), values.get("model_revision")),
        "the prompts": _fingerprint(split.train),
        "the held-out prompts": _fingerprint(split.held_out),
        **{f"generate: {name}": getattr(generate, name) for name in _OF_ANSWERS},
        "generate: seeds": generate.used_seeds,
        **{f"annotate: {name}": getattr(annotate, name) for name in _OF_ROWS},
        **{f"the scorer: {name}": value for name, value in scorer.identity.items()},
    }
    _check_folder(output_dir, identity)
    return split


def _check_settings(values: Mapping[str, Any], rounds: int) -> None:
    if values.get("push_to_hub"):
        raise SimPOError(
            "push_to_hub is true, which would push the model of each round. Set push_to_hub: false, and push the best "
            "one when the rounds are over."
        )
    if rounds > 1 and (values.get("load_in_4bit") or values.get("load_in_8bit")):
        raise SimPOError(
            "load_in_4bit and load_in_8bit need a new adapter in each run, and later rounds train that of the first "
            "one on. Leave them out, or set rounds: 1."
        )


def _check_generate(generate: GenerateSettings, values: Mapping[str, Any]) -> None:
    if generate.server or generate.engine == "server":
        raise SimPOError(
            "generate has a server, which would answer with the same model in each round. Leave server and engine out: "
            "the rounds answer with the models that they train."
        )
    if len(generate.used_seeds) < 2:
        raise SimPOError("generate makes one answer to each prompt, and a pair needs two. Set num_answers: 5.")
    if generate.engine == "vllm" and (values.get("use_peft") or base_of(str(values["model_name_or_path"]))):
        raise SimPOError(
            "generate has engine: vllm, which is given whole models here, and the rounds train an adapter. Set engine: "
            "transformers, or use_peft: false."
        )


def _check_annotate(annotate: AnnotateSettings, values: Mapping[str, Any]) -> None:
    if not values.get("annotate"):
        raise SimPOError(
            "The recipe has no section annotate, which tells what scores the answers. Add, for example, annotate: "
            "{reward_model: NAME} or annotate: {score: my_rules.py:score}."
        )
    check_one_scorer(annotate)
    if annotate.ranker:
        raise SimPOError(
            "annotate has a ranker, which compares answers with each other: a single answer has no score by which "
            "rounds could be compared. Set reward_model, score or server instead."
        )
    if annotate.pairs == "none":
        raise SimPOError("annotate has pairs: none, and there would be nothing to train on. Set pairs: best_worst.")


def _trained_by(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that change what a training gives; the data and the model tell of themselves."""
    left_out = harmless_knobs(SimPOConfig).union(
        *HARMLESS.values(), _SECTIONS, [each.name for each in fields(DataConfig)]
    )
    left_out -= {"chat_template", "tokenizer_name_or_path"} | (set() if values.get("global_batch_size") else _OF_BATCH)
    left_out |= {"model_name_or_path", "model_revision"}
    return {name: value for name, value in values.items() if name not in left_out and value is not None}


def _fingerprint(prompts: list[Prompt]) -> str:
    return hash_of([[prompt.hash, dict(prompt.columns)] for prompt in prompts])


def _check_folder(output_dir: Path, identity: Mapping[str, Any]) -> None:
    """Check that the folder holds no other iteration, and write what this one is begun with."""
    path, wanted = output_dir / IDENTITY, json.loads(json.dumps(public_settings(identity)))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise SimPOError(
                f"output_dir {str(output_dir)!r} cannot be made: {failure.strerror}. Give a folder of yours."
            ) from failure
        write_text(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        return
    except (OSError, ValueError) as error:
        raise SimPOError(f"{path} cannot be read: {error}. Give another output_dir.") from error
    if differences := identity_differences(found, wanted):
        raise SimPOError(
            f"{output_dir} holds rounds that were begun with other settings: {'; '.join(differences)}. Give the same "
            "settings to go on with them, or another output_dir."
        )
