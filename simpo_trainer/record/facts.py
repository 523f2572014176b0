"""`RunFacts`: what a run is, as plain data. The manifest is written from it, and the model card from the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .privacy import public_settings


@dataclass(frozen=True)
class RecipeFacts:
    """The recipe of a run.

    Args:
        name: the file's name.
        settings: the values that the files and the command line give.
        origins: where each of them was given.
        sources: the data sets that are named, see :func:`~simpo_trainer.data.load.describe_sources`.
    """

    name: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    sources: list[dict[str, Any]]


@dataclass(frozen=True)
class RunFacts:
    """All that is known of a run when it starts.

    Args:
        versions, hardware, seeds: of libraries, devices and random numbers.
        recipe: None for a run from Python.
        method: "simpo", "dpo" or "sft".
        settings: those of the method, of its rows and of its model.
        own_loss: the name of a trainer class with a loss of its own; None for a loss of the package.
        loss: what is minimised, a sentence in Markdown.
        log_prob_unit: unit of `logps/*`; None where a trainer of trl logs them.
        target_margin: what the loss aims at, in that unit; None without one.
        training: learning rate, schedule, optimiser and length of the training.
        model, tokenizer: what they are, without the paths that they came from.
        sets: of each set its size, fingerprint, and the report of its tokenization.
        batch: how a global batch is made up, and the number of optimiser steps.
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
        """The part of a manifest that holds these facts: names instead of paths, no secrets."""
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
    }
