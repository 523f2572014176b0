"""`simpo recipe`: what is printed, and that standard output holds nothing else."""

import logging

import pytest
import yaml

from simpo_trainer.cli import main
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.recipe.paths import recipe_files


@pytest.fixture
def call(capsys, caplog):
    def call(*words, status=0):
        with caplog.at_level(logging.INFO, "simpo_trainer"), pytest.raises(SystemExit) as exit:
            main(list(words))
        assert exit.value.code == status
        return capsys.readouterr()

    return call


def test_the_list_has_every_recipe(call):
    lines = call("recipe", "list").out.splitlines()
    assert lines[0].split() == ["recipe", "method", "beta", "ratio", "lr", "sft", "batch", "model"]
    listed = {line.split()[0]: line.split()[1:] for line in lines[1:] if line[:1].strip()}
    assert recipe_files().keys() <= listed.keys()
    assert listed["paper/llama3-8b-instruct"][:5] == ["simpo", "2.5", "0.55", "1e-06", "128"]
    assert listed["sizes/7b-8b"][:6] == ["simpo", "2", "0.5", "5e-07", "0.1", "128"]


def test_what_is_shown_is_a_recipe(call, tmp_path):
    shown = call("recipe", "show", "paper/mistral-7b-base", "--beta", "3").out
    settings = yaml.safe_load(shown)
    assert (settings["beta"], settings["gamma_beta_ratio"], settings["global_batch_size"]) == (3.0, 0.8, 128)
    assert "gradient_accumulation_steps" not in settings
    (tmp_path / "again.yaml").write_text(shown)
    again = load_recipe(tmp_path / "again.yaml")
    assert again.resolved() == settings
    assert again.training.settled().gradient_accumulation_steps == 64


def test_a_template_is_shown_on_one_line(call, tmp_path):
    template = "{{ 'a\n' }}: \"b\" é\n"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "quickstart", "chat_template": template}))
    shown = call("recipe", "show", str(path), "--origins").out
    assert [
        line for line in shown.splitlines() if line.startswith("chat_template: ") and line.endswith("# mine.yaml:1")
    ]
    assert yaml.safe_load(shown)["chat_template"] == template


def test_origins(call, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper/mistral-7b-base\nwarmup_ratio: 0.2\nlr_scheduler_kwargs: {min_lr: 1e-8}\n")
    shown = call("recipe", "show", str(path), "--origins", "--beta=3").out
    lines = dict(line.split(": ", 1) for line in shown.splitlines() if not line.startswith("#"))
    assert lines["beta"] == "3.0  # command line"
    assert lines["gamma_beta_ratio"].startswith("0.8  # paper/mistral-7b-base.yaml:")
    assert lines["seed"].startswith("42  # _common.yaml:")
    assert lines["warmup_steps"] == "0.2  # mine.yaml:2 (warmup_ratio)"
    assert lines["lr_scheduler_kwargs"] == "{min_lr: 1.0e-08}  # mine.yaml:3"
    assert lines["label_smoothing"] == "0.0  # default"
    assert yaml.safe_load(shown)["warmup_steps"] == 0.2


def test_only_changed_settings(call, tmp_path):
    """Under the same headings, without empty ones; what is not given but changed says so."""
    path = tmp_path / "mine.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: o\nseed: 42\nmax_length: 1024\n")
    assert call("recipe", "show", str(path), "--changed", "--origins", "--method", "dpo").out.splitlines() == [
        "# Method",
        "method: dpo  # command line",
        "# Model",
        "model_name_or_path: m  # mine.yaml:1",
        "# Data",
        "dataset_name: d  # mine.yaml:2",
        "# DPO",
        "max_length: 1024  # mine.yaml:5",
        "max_prompt_length: 900  # follows from other settings",
        "# Training",
        "output_dir: o  # mine.yaml:3",
    ]
    assert "# Method" not in call("recipe", "show", str(path), "--changed").out


def test_notices_do_not_disturb_the_output(call, caplog, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: o\nevaluation_strategy: 'no'\n")
    settings = yaml.safe_load(call("recipe", "show", str(path)).out)
    assert settings["eval_strategy"] == "no"
    assert "line 4: evaluation_strategy: no is read as eval_strategy: no" in caplog.text


def test_missing_packages_do_not_matter(call, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model_name_or_path: m\ndataset_name: d\noutput_dir: o\nuse_peft: true\nload_in_4bit: true\n"
        "attn_implementation: flash_attention_2\nreport_to: [wandb]\n"
    )
    assert yaml.safe_load(call("recipe", "show", str(path)).out)["report_to"] == ["wandb"]


def test_mistakes(call):
    assert "Did you mean quickstart?" in call("recipe", "show", "quikstart", status=1).err
    assert "Did you mean beta?" in call("recipe", "show", "quickstart", "--bta", "2", status=1).err
