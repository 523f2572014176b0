"""`simpo iterate`: settings of its own and keys of the recipe, options for the training, mistakes, and a stop."""

import pytest
from typer.testing import CliRunner

from simpo_trainer.cli.app import app
from simpo_trainer.rounds import iteration
from simpo_trainer.rounds.iteration import StageEnded

RECIPE = """
model_name_or_path: some/model
dataset_name: some/prompts
output_dir: runs/test
annotate: {score: rules.score}
iterate: {rounds: 5}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(iteration, "iterate", lambda *given: seen.append(given))
    return seen


def simpo(*words):
    return CliRunner().invoke(app, list(words))


def test_words_are_settings_or_keys_of_the_recipe(recipe, calls):
    words = ["--patience", "2", "--learning_rate=1e-6", "--output_dir", "runs/other"]
    result = simpo("iterate", recipe, *words, "--launcher", "ddp", "--num-processes", "2")
    assert result.exit_code == 0, result.output
    [(read, settings, launching)] = calls
    assert (settings.rounds, settings.patience) == (5, 2)
    assert read.values["learning_rate"] == 1e-6 and read.values["output_dir"] == "runs/other"
    assert "patience" not in read.overrides
    assert launching == ["--launcher", "ddp", "--num-processes", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "1"], "The recipe comes first, before --rounds"),
        (["RECIPE", "--rounds", "0"], "rounds is 0; it must be 1 or more"),
        (["RECIPE", "--rouns", "2"], "unknown key rouns"),
        (
            ["RECIPE", "--temperature", "1"],
            "temperature is a setting of generate. Write it in the recipe, under generate",
        ),
        (["RECIPE", "--score", "a.b"], "score is a setting of annotate"),
        (["RECIPE", "--annotate", "{score: a.b}"], "annotate is a section of a recipe"),
        (["RECIPE", "--num-processes", "2"], "Add --launcher"),
        (["RECIPE", "--launcher", "dpd"], "launcher dpd not found"),
    ],
)
def test_a_mistake_is_told(recipe, calls, words, message):
    result = simpo("iterate", *(recipe if word == "RECIPE" else word for word in words))
    assert result.exit_code != 0 and not calls
    assert message in " ".join((result.output + result.stderr).replace("│", " ").split())


def test_it_does_not_run_inside_of_a_launcher(recipe, calls, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = simpo("iterate", recipe)
    assert result.exit_code == 1 and not calls and "Call `simpo iterate` alone" in " ".join(result.stderr.split())


def test_its_status_is_that_of_the_stage_that_ended(recipe, monkeypatch):
    def ended(*given):
        raise StageEnded(143)

    monkeypatch.setattr(iteration, "iterate", ended)
    assert simpo("iterate", recipe).exit_code == 143


def test_the_help_lists_its_settings():
    shown = simpo("iterate", "--help").output
    assert "\n  rounds  [default 3]" in shown and "\n  patience  [default 1]" in shown and "--launcher" in shown
