"""The commands of docs/on-policy.md are understood, and its recipe, row and function are what the page says."""

import json
import re
import shlex
from pathlib import Path

import pytest

from answering import answering_recipe
from simpo_trainer.answers import generation
from simpo_trainer.cli import app as cli
from simpo_trainer.cli import train
from simpo_trainer.recipe import check_recipe, load_recipe
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings, read_section
from simpo_trainer.rounds import iteration
from simpo_trainer.scores import annotation
from simpo_trainer.scores.function_scorer import FunctionScorer

PAGE = (Path(__file__).parents[2] / "docs" / "on-policy.md").read_text()


def blocks(language):
    return [text for name, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL) if name == language]


def test_the_commands_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "on_policy.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "my_run.yaml").write_text("model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: runs/mine\n")
    seen = []
    monkeypatch.setattr(generation, "generate", lambda recipe, settings: seen.append(settings))
    monkeypatch.setattr(annotation, "annotate", lambda file, settings: seen.append(settings))
    monkeypatch.setattr(iteration, "iterate", lambda recipe, settings, launching: seen.append(settings))
    monkeypatch.setattr(train, "_train", lambda recipe, overrides: seen.append(check_recipe(recipe, overrides)))
    monkeypatch.setattr(train, "_launch", lambda words, *_: seen.append(check_recipe(words[0], words[1:])) or 0)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("simpo ")]
    for line in lines:
        with pytest.raises(SystemExit) as exit:
            cli.main(shlex.split(line, comments=True)[1:])
        assert exit.value.code == 0, line
    assert len(seen) == len(lines) == 7
    assert seen[3].engine == "vllm" and seen[4].reward_model == seen[4].trust_remote_code
    assert seen[6].rounds == 3


def test_the_recipe_is_the_paper_s(tmp_path):
    (tmp_path / "on_policy.yaml").write_text(blocks("yaml")[0])
    recipe = load_recipe(tmp_path / "on_policy.yaml")
    settings = read_section(GenerateSettings, recipe.settings["generate"])
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (0.8, 0.95, 4096)
    assert settings.used_seeds == [13, 21, 42, 79, 100]
    assert read_section(AnnotateSettings, recipe.settings["annotate"]).pairs == "best_worst"
    assert recipe.data.dataset_train_split == "train_prefs"


def test_the_row_and_the_function(tmp_path):
    row = json.loads(blocks("json")[0])
    (tmp_path / "my_rules.py").write_text(next(block for block in blocks("python") if "def score" in block))
    [[(_, scores)]] = FunctionScorer(f"{tmp_path / 'my_rules.py'}:score").scores([{**row, "topic": "cherry"}])
    assert scores == [-2.0, -1000.0]


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answering_recipe(tmp_path, [{"prompt": f"Tell me of {word}.", "topic": ""} for word in ("tea", "rain")])
    (tmp_path / "recipe.yaml").rename(tmp_path / "my_run.yaml")
    for block in blocks("python"):
        if "def score" in block:
            (tmp_path / "my_rules.py").write_text(block.replace("-len(words)", "-len(answer)"))
        else:
            exec(block.replace("max_new_tokens=512", "max_new_tokens=8"), {})
    assert (tmp_path / "answers.jsonl").is_file() and (tmp_path / "pairs.jsonl").is_file()
