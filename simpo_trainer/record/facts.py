"""`RunFacts`: a run as plain data. The manifest is written from it, and the model card from the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .privacy import public_settings


@dataclass(frozen=True)
class RecipeFacts:
    """The recipe of a run.

    Args:
        name: the file's name.
        settings: the values of the files and the command line.
        origins: the file and line, or the command line, that each value comes from.
        sources: the data sets that are named, see :func:`~simpo_trainer.data.load.describe_sources`.
        defaults: the values that the same settings have without being given; None where others decide.
    """

    name: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    sources: list[dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """All facts that are known when a run starts.

    Args:
        versions, hardware, seeds: versions of libraries, the platform with its devices, and seeds of random numbers.
        recipe: the recipe; None for a run from Python.
        method: "simpo", "dpo" or "sft".
        settings: the settings of the method, its rows and its model.
        own_loss: the name of a trainer class with its own loss; None for a loss of the package.
        loss: a sentence in Markdown about the loss.
        log_prob_unit: unit of `logps/*`; None where a trainer of trl logs them.
        target_margin: the target margin of the loss, in that unit; None without one.
        training: learning rate, schedule, optimiser and length of the training.
        model, tokenizer: a description of each, without the paths that they came from.
        sets: for each set its size, rows that repeat others, its fingerprint, and the counts of its tokenization.
        batch: the parts of a global batch, and the number of optimiser steps.
    """

    versions: dict[str, str]
    hardware: dict[str, Any]
    seeds: dict[str, Any]
    recipe: RecipeFacts | None
    method: str
    settings: dict[str, Any]
    own_loss: str | None
    loss: str
    log_prob_unit: str | None
    target_margin: float | None
    training: dict[str, Any]
    model: dict[str, Any]
    tokenizer: dict[str, Any]
    sets: dict[str, Any]
    batch: dict[str, Any]

    def public(self) -> dict[str, Any]:
        """Returns these facts as they stand in a manifest: names instead of paths, no secrets."""
        recipe = self.recipe
        return {
            "versions": self.versions,
            "hardware": self.hardware,
            "seeds": self.seeds,
            "recipe": recipe and _public_recipe(recipe),
            "method": self.method,
            "own_loss": self.own_loss,
            "loss": self.loss,
            self.method: public_settings(self.settings),
            "log_prob_unit": self.log_prob_unit,
            "target_margin": self.target_margin,
            "training": self.training,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "data": {"sources": public_settings(recipe.sources) if recipe else [], "sets": self.sets},
            "batch": self.batch,
        }


def _public_recipe(recipe: RecipeFacts) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "settings": public_settings(recipe.settings),
        "origins": public_settings(recipe.origins),
        "defaults": public_settings(recipe.defaults),
    }
