"""Changing the one word that names the loss trains something sensible, and says what it left aside."""

import pytest

from simpo_trainer.recipe.load import load_recipe

BASE = "model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: out\nuse_cpu: true\n"


@pytest.fixture
def recipe(tmp_path):
    """Loads a recipe with these lines, on top of a base with the lines of `below`."""

    def load(lines, *overrides, below=""):
        (tmp_path / "base.yaml").write_text(BASE + below)
        (tmp_path / "recipe.yaml").write_text(f"extends: base.yaml\n{lines}")
        return load_recipe(tmp_path / "recipe.yaml", list(overrides))

    return load


def test_the_new_losss_own_settings_replace_those_of_the_old_one(recipe):
    loaded = recipe("beta: 2.5\ngamma_beta_ratio: 0.3\nsft_weight: 0.1\n", "--loss_type", "cpo")
    used = loaded.training.settled()
    assert (used.beta, used.gamma_beta_ratio, used.sft_weight) == (0.1, None, 1.0)
    (notice,) = loaded.notices
    assert notice.startswith("beta: 2.5, gamma_beta_ratio: 0.3, sft_weight: 0.1: written for another loss")
    assert "ignored for loss_type: cpo" in notice


def test_what_is_given_beside_the_loss_counts(recipe):
    loaded = recipe("beta: 2.5\n", "--loss_type", "ipo", "--beta", "0.7")
    assert loaded.training.beta == 0.7 and loaded.notices == []
    same_file = recipe("loss_type: ipo\nbeta: 0.7\n", below="loss_type: sigmoid\nbeta: 2.5\n")
    assert same_file.training.beta == 0.7 and same_file.notices == []


def test_losses_on_simpos_reward_share_beta_and_margin(recipe):
    loaded = recipe("beta: 2.5\ngamma_beta_ratio: 0.3\n", "--loss_type", "hinge")
    assert (loaded.training.beta, loaded.training.gamma_beta_ratio, loaded.notices) == (2.5, 0.3, [])
    loaded = recipe("beta: 2.5\nsft_weight: 0.1\n", "--loss_type", "robust")
    assert (loaded.training.beta, loaded.training.sft_weight) == (2.5, 0.1)


def test_the_same_loss_again_changes_nothing(recipe):
    loaded = recipe("loss_type: orpo\nbeta: 0.3\nsft_weight: 0.5\n", "--loss_type", "orpo")
    assert (loaded.training.beta, loaded.training.sft_weight, loaded.notices) == (0.3, 0.5, [])


def test_weights_belong_to_their_list(recipe):
    lines = "loss_type: [sigmoid, ipo]\nloss_weights: [0.7, 0.3]\nbeta: 2.5\n"
    assert recipe(lines).training.loss_weights == [0.7, 0.3]
    loaded = recipe(lines, "--loss_type", "sigmoid")
    assert loaded.training.loss_weights is None and loaded.training.settled().beta == 2.0
    loaded = recipe(lines, "--loss_type", "[hinge, simper]", "--loss_weights", "[1, 2]")
    assert loaded.training.loss_type == ["hinge", "simper"] and loaded.training.loss_weights == [1.0, 2.0]


def test_settings_that_mean_one_thing_stay(recipe):
    loaded = recipe("label_smoothing: 0.2\nlearning_rate: 3e-7\n", "--loss_type", "robust")
    assert (loaded.training.label_smoothing, loaded.training.learning_rate) == (0.2, 3e-7)
