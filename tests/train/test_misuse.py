"""Likely mistakes in the use of the trainer from Python, and settings of the libraries that must go with it."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig

from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer, train_log, weights_of
from simpo_trainer import SimPOConfig, SimPOTrainer
from simpo_trainer.errors import SimPOError

ROWS = random_pairs(8)


def test_splits_as_the_training_set(tmp_path):
    splits = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
    with pytest.raises(SimPOError, match="must be a `Dataset` or .* found the splits train, test. Pass one"):
        SimPOTrainer(
            tiny_model(), SimPOConfig(output_dir=str(tmp_path)), train_dataset=splits, processing_class=word_tokenizer()
        )


def test_a_model_without_a_name_and_no_tokenizer(tmp_path):
    with pytest.raises(SimPOError, match="Pass its tokenizer as processing_class"):
        SimPOTrainer(tiny_model(), SimPOConfig(output_dir=str(tmp_path)), train_dataset=ROWS)


def test_loading_arguments_for_a_loaded_model(tmp_path):
    with pytest.raises(SimPOError, match="model_init_kwargs is set, but the model is an object already"):
        make_trainer(tmp_path, ROWS, model_init_kwargs={"attn_implementation": "eager"})


def test_nothing_to_train(tmp_path):
    model = tiny_model().requires_grad_(False)
    with pytest.raises(SimPOError, match="The model has no trainable parameter"):
        make_trainer(tmp_path, ROWS, model=model)


def test_an_evaluation_set_that_is_not_there(tmp_path):
    trainer = make_trainer(tmp_path, ROWS, eval_dataset={"a": Dataset.from_list(ROWS)})
    with pytest.raises(SimPOError, match="no evaluation set called 'b'"):
        trainer.evaluate("b")
    with pytest.raises(SimPOError, match="The eval set has no rows"):
        trainer.evaluate([])


@pytest.mark.parametrize("column", ["prompt_ids", "chosen_ids", "rejected_ids"])
def test_token_rows_with_nothing_in_them(tmp_path, column):
    rows = [*ROWS[:2], {**ROWS[2], column: []}]
    with pytest.raises(SimPOError, match=f"train: {column} of row 2 is empty"):
        make_trainer(tmp_path, rows)


@pytest.mark.slow
@pytest.mark.parametrize("margin", [-5.0, None, math.nan, math.inf])
@pytest.mark.parametrize("form", [list, Dataset.from_list, lambda rows: Dataset.from_list(rows).with_format("torch")])
def test_margins_of_token_rows(tmp_path, form, margin):
    """The last row alone is at fault, in a set to train on as in one to evaluate on."""
    rows = [{**row, "margin": float(place)} for place, row in enumerate(ROWS)]
    trainer = make_trainer(tmp_path, rows, eval_dataset=form(rows))
    wrong = form([*rows, {**rows[0], "margin": margin}])
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(SimPOError, match=rf"(eval|test): the margin of row {len(rows)} is {margin}; it must be a"):
            call(wrong)
    with pytest.raises(SimPOError, match=rf"train: the margin of row {len(rows)} is {margin}; it must be a finite"):
        make_trainer(tmp_path, [*rows, {**rows[0], "margin": margin}])


def test_token_rows_are_not_cut(tmp_path):
    row = {"prompt_ids": [1, 5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 9, 2]}
    make_trainer(tmp_path, [row], max_length=6, max_prompt_length=2)
    with pytest.raises(SimPOError, match="row 0 has 6 tokens and max_length is 5"):
        make_trainer(tmp_path, [row], max_length=5, max_prompt_length=2)


def test_raw_rows_may_be_a_list(tmp_path):
    trainer = make_trainer(tmp_path, ROWS, max_steps=1)
    found = trainer.evaluate([as_text(row) for row in ROWS if len(row["chosen_ids"]) > 1 < len(row["rejected_ids"])])
    assert found["eval_num_pairs"] > 2


def test_metrics_of_numpy_go_into_a_checkpoint(tmp_path):
    """With or without the prefix that transformers would add."""
    metrics = {"wins": np.int64(3), "eval_losses": np.float32(0.5)}
    trainer = make_trainer(
        tmp_path,
        ROWS,
        eval_dataset=Dataset.from_list(ROWS),
        arguments={"compute_metrics": lambda prediction: metrics},
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    logged = next(entry for entry in state["log_history"] if "eval_loss" in entry)
    assert (logged["eval_wins"], logged["eval_losses"]) == (3, 0.5)


def test_a_saved_head_beside_an_adapter_trains_under_bfloat16(tmp_path):
    """The copy is float32 over a bfloat16 base: only autocast makes them fit."""
    tiny_model().save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(
        tmp_path, ROWS, model=str(tmp_path / "base"), arguments={"peft_config": config}, bf16=True, max_steps=1
    )
    before = weights_of(trainer)
    trainer.train()
    moved = {name for name, weight in weights_of(trainer).items() if not weight.equal(before[name])}
    assert any("lm_head" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_losses(tmp_path):
    plain, compiled = (
        make_trainer(tmp_path, ROWS, max_steps=2, per_device_train_batch_size=4, **settings)
        for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"})
    )
    plain.train()
    compiled.train()
    np.testing.assert_allclose(train_log(compiled, "loss"), train_log(plain, "loss"), rtol=1e-4)


def test_an_open_log_window_does_not_reach_the_next_run(tmp_path):
    trainer = make_trainer(
        tmp_path, ROWS, max_steps=3, per_device_train_batch_size=4, logging_steps=2, learning_rate=0.0
    )
    trainer.train()
    first = train_log(trainer, "preference_loss")
    trainer.train()
    assert train_log(trainer, "preference_loss") == first
