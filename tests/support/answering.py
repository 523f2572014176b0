"""A small chat model with random weights in a folder, and a recipe that lets it answer."""

import json
from pathlib import Path
from typing import Any

from models import tiny_model
from simpo_trainer.recipe import load_recipe
from simpo_trainer.recipe.load import Recipe
from toy import toy_tokenizer


def write_chat_model(folder: Path, seed: int = 0, template: str | None = None, **config: Any) -> Path:
    """Write a model and its tokenizer, which has the ChatML template unless another is given ("" for none)."""
    tokenizer = toy_tokenizer() if template is None else toy_tokenizer(template or None)
    tiny_model(seed=seed, vocab_size=len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(count: int) -> list[dict[str, Any]]:
    """Rows of prompts of uneven lengths, with a column of their own."""
    return [{"prompt": f"Count to {i}" + " and back" * (i % 4), "number": i} for i in range(count)]


def answering_recipe(folder: Path, rows: list[dict[str, Any]], **overrides: Any) -> Recipe:
    """Write rows and, if it is not there, a model into `folder`, and return a recipe about them."""
    if not (folder / "model").exists():
        write_chat_model(folder / "model")
    write_lines(folder / "prompts.jsonl", rows)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {folder / 'model'}\ndataset_name: {folder / 'prompts.jsonl'}\n"
        f"output_dir: {folder / 'run'}\n"
    )
    return load_recipe(recipe, overrides)
