"""Optional packages: missing ones stop a run at its start, and nothing before."""

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe
from simpo_trainer.run import packages
from simpo_trainer.run.packages import check_packages


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "has_package", lambda name: False)
    monkeypatch.setattr("simpo_trainer.recipe.load.has_package", lambda name: False)
    monkeypatch.setattr(packages, "get_available_reporting_integrations", lambda: ["tensorboard"])

    def load(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"model_name_or_path: m\ndataset_name: d\noutput_dir: o\n{text}")
        return load_recipe(path)

    return load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "report_to: [tensorboard, wandb]",
            "report_to names wandb, not installed here; installed: tensorboard. Run `pip install wandb`, or override "
            "it: --report_to none",
        ),
        (
            "attn_implementation: flash_attention_2",
            "flash_attn is not installed. Run `pip install flash-attn --no-build-isolation`, or override it: "
            "--attn_implementation sdpa",
        ),
        ("attn_implementation: flash_attention_3", "flash_attn_interface is not installed. Run `pip install kernels`"),
        (
            "use_peft: true\nload_in_4bit: true",
            "load_in_4bit needs bitsandbytes, which is not installed. Run `pip install bitsandbytes`, or override it: "
            "--no-load_in_4bit",
        ),
        ("use_peft: true\nload_in_8bit: true", "load_in_8bit needs bitsandbytes"),
    ],
)
def test_a_missing_package(load, text, message):
    recipe = load(text)  # a recipe is read without it
    with pytest.raises(SimPOError) as caught:
        check_packages(recipe.training, recipe.model)
    assert message in str(caught.value)


def test_all_missing_packages_come_at_once(load):
    recipe = load("report_to: [wandb]\nattn_implementation: flash_attention_2\n")
    with pytest.raises(SimPOError, match="(?s)wandb.*\n.*flash_attn"):
        check_packages(recipe.training, recipe.model)


def test_the_hubs_kernels_stand_in_for_flash_attention(load, monkeypatch):
    recipe = load("attn_implementation: flash_attention_2\n")
    monkeypatch.setattr(packages, "has_package", lambda name: name == "kernels")
    check_packages(recipe.training, recipe.model)


def test_nothing_to_miss(load):
    recipe = load("report_to: none\nattn_implementation: eager\n")
    check_packages(recipe.training, recipe.model)


def test_a_mistyped_reporter_is_not_told_to_be_installed(load):
    recipe = load("report_to: [wandbb]\n")
    with pytest.raises(
        SimPOError, match=r"report_to names wandbb, which is not a reporter. Did you mean wandb\?"
    ) as caught:
        check_packages(recipe.training, recipe.model)
    assert "pip install" not in str(caught.value)


def test_mistyped_attention(load):
    recipe = load("attn_implementation: flash_atention_2\n")
    with pytest.raises(
        SimPOError,
        match=r"is flash_atention_2, which transformers does not have. Did you mean flash_attention_2\?",
    ):
        check_packages(recipe.training, recipe.model)
    recipe = load("attn_implementation: kernels-community/flash-mla\n")
    check_packages(recipe.training, recipe.model)
