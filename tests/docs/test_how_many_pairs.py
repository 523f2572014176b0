"""The tables of docs/how-many-pairs.md agree with the software: its steps, and its own warning of too few of them."""

import math
import re
from pathlib import Path

import pytest
from datasets import Dataset

from models import random_pairs
from runs import make_trainer
from simpo_trainer import SimPOConfig
from simpo_trainer.data.mixing import carve_test
from simpo_trainer.recipe import load_recipe
from simpo_trainer.train.rate import low_rate
from simpo_trainer.train.start import too_few_steps

PAGE = (Path(__file__).parents[2] / "docs" / "how-many-pairs.md").read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(first):
    """The cells of the table whose head begins with `first`, without the head."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [cells(lines[0]), *map(cells, lines[2:])]


def steps_of(pairs, batch, epochs):
    return epochs * math.ceil(pairs / batch)


def is_warned(tmp_path, rate, steps, *, adapts):
    return too_few_steps(SimPOConfig(str(tmp_path), learning_rate=rate), steps, adapts=adapts) is not None


STARTS = table("pairs")[1:]
LEAST = table("`learning_rate`")


@pytest.mark.parametrize("row", STARTS, ids=lambda row: row[0])
def test_where_to_start(row, tmp_path):
    pairs, held_out, batch, epochs, steps = (int(cell.replace(",", "")) for cell in row[:5])
    full, adapter = map(float, row[5:7])
    train, test = carve_test(Dataset.from_dict({"chosen": list(range(pairs))}), held_out, 42)
    assert (len(train), len(test)) == (pairs - held_out, held_out)
    assert steps == steps_of(len(train), batch, epochs)
    assert not is_warned(tmp_path, full, steps, adapts=False)
    assert not is_warned(tmp_path, adapter, steps, adapts=True) and low_rate(adapter) is None
    assert 2 <= full * steps / 2e-5 <= 12 and 2 <= adapter * steps / 2e-4 <= 12  # times the least, as the page says
    assert float(row[7].removesuffix(" %")) == round(100 * math.sqrt(0.7 * 0.3 / held_out), 1)


def test_the_paper_s_settings_are_too_few_steps_for_300_pairs(tmp_path):
    assert [int(row[0].replace(",", "")) for row in STARTS] == [300, 1000, 5000, 20_000, 60_000]
    assert steps_of(300, 128, 1) == 3 and "The same settings make 3 steps\nof 300 pairs" in PAGE
    assert is_warned(tmp_path, 1e-6, 3, adapts=False)


@pytest.mark.parametrize(("row", "adapts"), [(LEAST[1], False), (LEAST[2], True)])
def test_the_least_steps_are_those_of_the_warning(row, adapts, tmp_path):
    given = [(float(rate), int(steps)) for rate, steps in zip(LEAST[0][1:], row[1:], strict=True) if steps]
    assert len(given) >= 3
    for rate, steps in given:
        assert is_warned(tmp_path, rate, steps - 1, adapts=adapts)
        assert not is_warned(tmp_path, rate, steps, adapts=adapts)


def test_the_words_of_the_warning_stand_in_the_page(tmp_path):
    warning = too_few_steps(SimPOConfig(str(tmp_path), learning_rate=5e-7), 1)
    assert "hardly move the model" in warning and "`hardly move the model`" in PAGE


def test_the_trainer_counts_steps_by_the_formula(tmp_path):
    trainer = make_trainer(tmp_path, random_pairs(13), per_device_train_batch_size=4, num_train_epochs=2)
    trainer.train()
    assert trainer.state.max_steps == trainer.state.global_step == steps_of(13, 4, 2) == 8


def test_the_recipe_has_the_numbers_of_its_row(tmp_path):
    yaml = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "run.yaml").write_text(f"model_name_or_path: org/model\noutput_dir: out\n{yaml}")
    recipe = load_recipe(tmp_path / "run.yaml")
    training = recipe.training
    row = next(row for row in STARTS if row[0] == "1,000")
    assert [recipe.data.test_split_size, training.global_batch_size, training.num_train_epochs] == [
        int(cell) for cell in row[1:4]
    ]
    assert training.learning_rate == float(row[5])
