"""Recipe files: what one takes over from those it extends, and where each value was given."""

import pytest

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe.load import load_recipe

BASE = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_recipe_extends_another(write):
    write("base.yaml", BASE + "beta: 3\nmax_length: 100\nmax_prompt_length: 50\n")
    write("more/middle.yaml", "extends: ../base.yaml\nbeta: 4\nseed: 7\n")
    recipe = load_recipe(write("top.yaml", "\nextends: more/middle.yaml\nseed: 8\n"), ["--run_name", "x"])
    training = recipe.training
    assert (training.beta, training.max_length, training.seed, training.run_name) == (4.0, 100, 8, "x")
    assert recipe.origins == {
        "model_name_or_path": "base.yaml:1",
        "dataset_name": "base.yaml:2",
        "output_dir": "base.yaml:3",
        "max_length": "base.yaml:5",
        "max_prompt_length": "base.yaml:6",
        "beta": "middle.yaml:2",
        "seed": "top.yaml:3",
        "run_name": "command line",
    }
    assert "extends" not in recipe.settings


def test_a_recipe_extends_one_that_comes_with_the_package(write):
    recipe = load_recipe(write("mine.yaml", "extends: paper/llama3-8b-instruct\nlearning_rate: 2e-7\n"))
    assert (recipe.training.beta, recipe.training.learning_rate) == (2.5, 2e-7)
    assert recipe.origins["beta"].startswith("paper/llama3-8b-instruct.yaml:")
    assert recipe.origins["seed"].startswith("_common.yaml:")


def test_mistakes_in_an_extended_file_name_it(write):
    write("base.yaml", BASE + "bta: 3\nseed: 1\nseed: 2\n")
    with pytest.raises(SimPOError, match="top.yaml: 3 problems") as caught:
        load_recipe(write("top.yaml", "extends: base.yaml\nmax_length: x\n"))
    for part in (
        "base.yaml, line 4: unknown key bta",
        "base.yaml, line 6: seed is given twice",
        "  line 2: max_length",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml", "top.yaml: line 1: extends: recipe nowhere.yaml not found"),
        ("extends: [a, b]", r"extends is \['a', 'b'\]; it must be the file or name of one recipe"),
        ("extends: top.yaml", "top.yaml extends itself: top.yaml -> top.yaml. Remove one `extends:` line"),
        ("extends: loop.yaml", "top.yaml extends itself: top.yaml -> loop.yaml -> top.yaml"),
    ],
)
def test_extending_what_cannot_be(write, text, message):
    write("loop.yaml", "extends: top.yaml\n")
    with pytest.raises(SimPOError, match=message):
        load_recipe(write("top.yaml", text + "\n"))


@pytest.mark.parametrize(
    ("base", "top", "left"),
    [
        ("dataset_mixer: {a: 1.0}\ndataset_splits: [train, test]", "dataset_name: b", {"dataset_name": "b"}),
        (
            "dataset_name: a\ndataset_train_split: s\nbeta: 3",
            "dataset_mixer: {b: 1.0}",
            {"dataset_mixer": {"b": 1.0}, "beta": 3.0},
        ),
        ("dataset_name: a\ndataset_config: c", "datasets: [{path: b}]", {"datasets": [{"path": "b"}]}),
        # Splits belong to the data that they were given for.
        (
            "dataset_name: a\ndataset_train_split: s\ndataset_test_split: t\ncolumns: {prompt: q}",
            "dataset_name: b",
            {"dataset_name": "b", "columns": {"prompt": "q"}},
        ),
        (
            "dataset_name: a\ndataset_train_split: s",
            "dataset_train_split: t",
            {"dataset_name": "a", "dataset_train_split": "t"},
        ),
    ],
)
def test_a_later_source_replaces_an_earlier_one(write, base, top, left):
    write("base.yaml", base + "\n")
    recipe = load_recipe(write("top.yaml", f"extends: base.yaml\nmodel_name_or_path: m\noutput_dir: o\n{top}\n"))
    del recipe.settings["model_name_or_path"], recipe.settings["output_dir"]
    assert recipe.settings == left


def test_a_later_global_batch_replaces_an_accumulation_but_not_the_other_way_round(write):
    file = write("top.yaml", BASE + "gradient_accumulation_steps: 16\nper_device_train_batch_size: 2\n")
    training = load_recipe(file, ["--global_batch_size", "64"]).training
    assert (training.global_batch_size, training.settled().gradient_accumulation_steps) == (64, 32)
    file = write("top.yaml", BASE + "global_batch_size: 64\nper_device_train_batch_size: 2\n")
    training = load_recipe(file, ["--gradient_accumulation_steps", "16"]).training
    # Both are kept: the start of training says that the batch is another than the recipe's.
    assert (training.global_batch_size, training.gradient_accumulation_steps) == (64, 16)
