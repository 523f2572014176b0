"""The commands of an iteration: what each stage is asked for, as words of `simpo`."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..data.settings import DataConfig
from ..recipe.answer_keys import GenerateSettings, read_section
from ..recipe.load import ReadRecipe
from ..record.privacy import without_tokens
from ..train.going_on import AUTO
from ..train.other_trainers import as_text
from .files import RoundFiles, prompt_files

# Keys of the data that are about the model as well as about the rows.
_OF_MODEL = {"chat_template", "tokenizer_name_or_path"}
# What `model_init_kwargs` say of the place of the recipe's model, which a model that was trained from it has not.
_OF_PLACE = {"gguf_file", "subfolder"}


class Stages:
    """The words of each stage of an iteration.

    Args:
        recipe: of the iteration.
        launching: options of `simpo train` that start several processes.
    """

    def __init__(self, recipe: ReadRecipe, launching: Sequence[str] = ()) -> None:
        self._recipe = recipe
        self._launching = list(launching)
        self.output_dir = Path(str(recipe.values["output_dir"])).expanduser()
        self.trains_adapter = bool(recipe.values.get("use_peft"))
        self._settings = read_section(GenerateSettings, recipe.values.get("generate") or {})

    def sample(self, files: RoundFiles) -> list[str]:
        """Returns the words that sample answers: of the model before the round to the prompts that are trained on.

        For the start they are answers of its model to the held-out prompts.
        """
        train, held_out = prompt_files(self.output_dir)
        return self._generate(train if files.number else held_out, files.answers, files.number - 1) + [
            f"--seeds={json.dumps(self._seeds(files.number))}"
        ]

    def pair(self, files: RoundFiles) -> list[str]:
        """Returns the words that score those answers, and make rows of them."""
        return self._annotate(files.answers, files.pairs)

    def train(self, files: RoundFiles) -> list[str]:
        """Returns the words that train the model before the round on its rows."""
        given = {
            **self._data(files.pairs),
            "eval_dataset_name": str(RoundFiles(self.output_dir, 0).pairs),
            **self._model(files.number - 1),
            "output_dir": str(files.model),
            "resume_from_checkpoint": AUTO,
        }
        evaluates = self._recipe.values.get("eval_strategy", "no")
        if files.number == 1 and str(getattr(evaluates, "value", evaluates)) == "no":
            given["eval_strategy"] = "epoch"  # else the start model is not measured
        if files.number > 1 and self.trains_adapter:
            given["use_peft"] = False  # the model is an adapter already, which trains on
        return ["train", str(self._recipe.path), *self._launching, *self._overrides(given)]

    def answer_held_out(self, files: RoundFiles) -> list[str]:
        """Returns the words that write the greedy answers of the round's model to the held-out prompts."""
        words = self._generate(prompt_files(self.output_dir)[1], files.greedy, files.number)
        return [*words, "--temperature=0", "--num_answers=1"]

    def score_held_out(self, files: RoundFiles) -> list[str]:
        """Returns the words that score the greedy answers."""
        return [*self._annotate(files.greedy, files.held_out), "--pairs=none"]

    def _generate(self, prompts: Path, output: Path, model: int) -> list[str]:
        given = {**self._data(prompts), **self._model(model)}
        words = ["generate", str(self._recipe.path), *self._overrides(given), f"--output={output}"]
        if self.trains_adapter and self._settings.engine is None:
            words.append("--engine=transformers")  # vLLM is given whole models
        return words

    def _annotate(self, answers: Path, output: Path) -> list[str]:
        return ["annotate", str(answers), "--recipe", str(self._recipe.path), f"--output={output}"]

    def _seeds(self, number: int) -> list[int]:
        """Returns the seeds of a round: those of the settings, moved so that no two rounds share one."""
        used = self._settings.used_seeds
        return [seed + number * (max(used) - min(used) + 1) for seed in used]

    def _data(self, source: Path) -> dict[str, Any]:
        """Returns the keys of the data for one file, instead of all that the recipe says of its sources."""
        given = {each.name: each.default for each in fields(DataConfig) if each.name in self._recipe.values}
        return {**{name: value for name, value in given.items() if name not in _OF_MODEL}, "dataset_name": str(source)}

    def _model(self, number: int) -> dict[str, Any]:
        """Returns the keys of the model that a round has made; of the start, none."""
        if number <= 0:
            return {}
        given: dict[str, Any] = {"model_name_or_path": str(RoundFiles(self.output_dir, number).model)}
        kwargs = self._recipe.values.get("model_init_kwargs") or {}
        if _OF_PLACE & kwargs.keys():
            given["model_init_kwargs"] = {name: value for name, value in kwargs.items() if name not in _OF_PLACE}
        return given

    def _overrides(self, given: Mapping[str, Any]) -> list[str]:
        texts = {**self._recipe.overrides, **{name: as_text(value) for name, value in given.items()}}
        return [f"--{name}={text}" for name, text in texts.items()]


def shown(words: Sequence[str]) -> str:
    """Returns the command as one line, to read and to paste into a shell; a secret is shown as a variable."""
    parts = [
        '--hub_token="$HF_TOKEN"' if word.startswith("--hub_token=") else shlex.quote(without_tokens(word))
        for word in words
    ]
    return " ".join(["simpo", *parts])
