"""`simpo generate` and `simpo annotate`: settings from recipe and command line, help, and a stop."""

import pytest
from typer.testing import CliRunner

from simpo_trainer.answers import generation
from simpo_trainer.cli.app import app
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings, section_keys
from simpo_trainer.scores import annotation

RECIPE = """
model_name_or_path: some/model
dataset_name: some/prompts
output_dir: runs/test
generate: {temperature: 0.5, max_new_tokens: 7}
annotate: {score: rules.score, least_gap: 0.5}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(generation, "generate", lambda *given: seen.append(given))
    monkeypatch.setattr(annotation, "annotate", lambda *given: seen.append(given))
    return seen


def simpo(*words):
    return CliRunner().invoke(app, list(words))


def test_words_are_settings_or_keys_of_the_recipe(recipe, calls):
    words = ["--temperature", "0.9", "--num-answers=3", "--seeds", "[4, 5, 6]", "--model_name_or_path", "other/model"]
    result = simpo("generate", recipe, *words)
    assert result.exit_code == 0, result.output
    [(loaded, settings)] = calls
    assert (settings.temperature, settings.max_new_tokens, settings.used_seeds) == (0.9, 7, [4, 5, 6])
    assert loaded.model.model_name_or_path == "other/model"


def test_annotate_reads_its_section_of_a_recipe(recipe, calls):
    assert simpo("annotate", "answers.jsonl", "--recipe", recipe, "--pairs", "all").exit_code == 0
    assert simpo("annotate", "answers.jsonl", "--score", "a.b").exit_code == 0
    assert [(settings.score, settings.least_gap, settings.pairs) for _, settings in calls] == [
        ("rules.score", 0.5, "all"),
        ("a.b", 0.0, "best_worst"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--temperature", "1"], "The recipe comes first, before --temperature"),
        (["annotate", "--score", "a.b"], "The file comes first, before --score"),
        (["generate", "RECIPE", "--temprature", "1"], "unknown key temprature"),
        (["generate", "RECIPE", "--temperature", "hot"], "temperature is 'hot'; it must be a number"),
        (["generate", "RECIPE", "--top_p", "0"], "top_p is 0.0; it must be above 0 and at most 1"),
        (["generate", "RECIPE", "--seeds", "[1, 1]"], "it must be a list of different whole numbers"),
        (["annotate", "answers.jsonl", "--pairs", "best"], "it must be"),
        (["annotate", "answers.jsonl", "--scroe", "a.b"], "unknown key scroe. Did you mean score?"),
        (["annotate", "answers.jsonl", "all"], "unexpected 'all'"),
    ],
)
def test_a_mistake_is_told(recipe, calls, words, message):
    result = simpo(*(recipe if word == "RECIPE" else word for word in words))
    assert result.exit_code != 0 and not calls
    assert message in " ".join((result.output + result.stderr).replace("│", " ").split())


def test_a_mistake_in_a_section_is_told_when_the_recipe_is_read(tmp_path, calls):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("temperature", "temprature").replace("0.5}", "-1}"))
    result = simpo("train", str(tmp_path / "recipe.yaml"))
    assert result.exit_code == 1
    assert "generate: unknown key temprature. Did you mean temperature?" in result.stderr
    assert "annotate: least_gap is -1" in result.stderr


def test_recipe_show_has_the_sections(recipe):
    shown = simpo("recipe", "show", recipe).output
    assert "# Answers\ngenerate: {max_new_tokens: 7, temperature: 0.5}" in shown


@pytest.mark.parametrize(("verb", "settings"), [("generate", GenerateSettings), ("annotate", AnnotateSettings)])
def test_the_help_lists_every_setting(verb, settings):
    result = simpo(verb, "--help")
    assert result.exit_code == 0
    for name in section_keys(settings):
        assert f"\n  {name}  [" in result.output
