"""The model card: its head for the Hub, and what it tells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from torch import Tensor

from models import as_text, random_pairs, tiny_model, word_tokenizer
from runs import make_trainer
from simpo_trainer import SimPOTrainer
from simpo_trainer.data.load import DataConfig, describe_sources
from simpo_trainer.errors import SimPOError
from simpo_trainer.publish.card import card_of_folder
from simpo_trainer.recipe import load_recipe
from simpo_trainer.record.facts import RecipeFacts
from simpo_trainer.run import run

ROOT = Path(__file__).parents[2]


def trained(folder, **options):
    rows = random_pairs(8)
    trainer = make_trainer(folder, rows, eval_dataset=Dataset.from_list(rows[:4]), max_steps=2, **options)
    trainer.train()
    trainer.evaluate()
    return trainer


def card_of(trainer, **options):
    trainer.create_model_card(**options)
    return ModelCard.load(f"{trainer.args.output_dir}/README.md")


def named_model(name):
    model = tiny_model()
    model.config._name_or_path = name
    return model


@pytest.mark.slow
def test_the_card_of_a_run_from_python(tmp_path):
    trainer = trained(tmp_path, beta=3.0, gamma_beta_ratio=0.25, learning_rate=0.5)
    card = card_of(trainer)
    head = card.data.to_dict()
    assert head["tags"] == ["simpo", "trl", "preference-optimization"]
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "text-generation"
    assert not head.keys() & {"base_model", "datasets", "license"}
    text = card.text
    assert "`-logsigmoid(beta*z)`" in text and "each per token (`a`)" in text
    for line in (
        "| `beta` | 3.0 |",
        "| `gamma_beta_ratio` | 0.25 |",
        "| learning_rate | 0.5, constant, warm-up 0 steps |",
        "| epochs | 1 (2 optimiser steps) |",
        "| global batch | 8 pairs (8 per device x 1 process x 1 accumulation) |",
        "| seed | 42 |",
        "- transformers: 5.",
        "![Training curves: loss, margin, log-probabilities, accuracy](training_curves.png)",
        "The data sets are not named.",
        "| train | 8 | - | - |",
        "Meng, Yu and Xia, Mengzhou and Chen, Danqi",
        'model="path/to/this/folder"',
    ):
        assert line in text, line
    assert "| metric | training, last log | eval |" in text
    accuracy = trainer.state.log_history[-1]["eval_rewards/accuracies"]
    assert f" {accuracy:.3f} |" in next(line for line in text.splitlines() if line.startswith("| accuracy"))
    assert (tmp_path / "training_curves.png").is_file()
    assert "The training is not complete" not in text
    assert str(tmp_path) not in card.content


@pytest.mark.slow
def test_names_of_the_hub_are_linked(tmp_path):
    trainer = trained(tmp_path, model=named_model("org/base"))
    data = DataConfig(datasets=[{"path": "org/pairs", "split": "train", "fraction": 0.5}, {"path": str(tmp_path)}])
    trainer.recipe_facts = RecipeFacts("r.yaml", {}, {}, describe_sources(data))
    trainer.run_record.manifest = {}
    trainer.hub_model_id = "user/mine"
    card = card_of(trainer)
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/pairs"]
    assert "A fine-tuned version of [org/base](https://huggingface.co/org/base)" in card.text
    assert (
        "- [org/pairs](https://huggingface.co/datasets/org/pairs) (use train, split train, fraction 0.5)" in card.text
    )
    assert "- local folder (use train, split train)" in card.text
    assert 'model="user/mine"' in card.text and "\n# mine\n" in card.content
    assert str(tmp_path) not in card.content


@pytest.mark.slow
def test_what_a_user_of_transformers_passes_is_kept(tmp_path):
    trainer = trained(tmp_path)
    trainer.model.model_tags = ["from-model"]
    card = card_of(
        trainer,
        model_name="Fine model",
        dataset_name="org/pairs",
        tags=["mine", "simpo"],
        license="apache-2.0",
        language="en",
        finetuned_from="org/base",
        tasks="text-generation",
    )
    assert card.data.tags == ["simpo", "trl", "preference-optimization", "mine", "from-model"]
    assert (card.data.license, card.data.language, card.data.base_model) == ("apache-2.0", "en", "org/base")
    assert card.data.datasets == ["org/pairs"]
    assert "# Fine model" in card.text and "huggingface.co/datasets/org/pairs" in card.text


@pytest.mark.slow
def test_the_card_of_an_adapter(tmp_path):
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = trained(tmp_path, model=named_model("org/base"), arguments={"peft_config": lora})
    trainer.save_model(str(tmp_path))
    card = card_of(trainer)
    assert card.data.library_name == "peft" and card.data.base_model == "org/base"
    assert "An adapter for [org/base]" in card.text and "AutoPeftModelForCausalLM" in card.text


@pytest.mark.slow
def test_a_card_before_the_end_says_so(tmp_path):
    trainer = trained(tmp_path)
    trainer.run_record.manifest["batch"]["optimiser_steps"] = 5
    assert "**The training is not complete:** step 2 of 5." in card_of(trainer).text


def test_a_card_without_a_log_has_no_picture(tmp_path):
    trainer = make_trainer(tmp_path, random_pairs(8))
    text = card_of(trainer).text
    assert "training_curves.png" not in text and "Nothing was measured." in text


class Squared(SimPOTrainer):
    def pair_loss(self, chosen, rejected, *, margin) -> Tensor:
        return (chosen.average - rejected.average - margin) ** 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"loss_type": "hinge"}, "`relu(1 - beta*z)` (hinge, [arXiv 2405.14734]"),
        (
            {"loss_type": ["sigmoid", "slic"], "loss_weights": [0.7, 0.3]},
            "plus 0.3 times `relu(slic_delta - delta)` (slic,",
        ),
        ({"average_log_prob": False, "beta": 0.1}, "on log-probabilities of whole answers"),
        ({"sft_weight": 0.5}, "added to it, `sft_weight` times the negative log-likelihood"),
        ({"label_smoothing": 0.1}, "smoothed by `label_smoothing`"),
        ({"trainer_class": Squared}, "Loss: that of the trainer class `Squared`."),
    ],
)
def test_the_loss_is_told_as_it_is(tmp_path, options, line):
    assert line in card_of(make_trainer(tmp_path, random_pairs(8), **options)).text


def test_left_out_rows_and_streams_are_told(tmp_path):
    rows = [as_text(random_pairs(3)[0])] * 3 + [{"prompt": "w3", "chosen": " w4", "rejected": " "}]
    trainer = make_trainer(tmp_path, rows)
    assert "| train | 3 | 1 empty_answer | 0 prompts, 0 answers |" in card_of(trainer).text
    trainer.train_dataset, trainer.token_sets = Dataset.from_list(rows).to_iterable_dataset(), {}
    assert "| train | streamed | - | - | - |" in card_of(trainer).text


_FROM_FILES = """
import sys
from pathlib import Path
from simpo_trainer.publish.card import card_of_folder
card_of_folder(Path(sys.argv[1]))
loaded = [name for name in sys.modules if name.startswith(("simpo_trainer.train", "simpo_trainer.baselines"))]
assert not loaded, loaded
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simpo", "dpo", "sft"])
def test_the_files_of_a_run_make_its_card(tmp_path, monkeypatch, method):
    """Card and curves are those that the trainer wrote; the process that makes them never imports a trainer."""
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(as_text(pair)) for pair in random_pairs(8)))
    settings = {"model_name_or_path": "model", "dataset_name": "pairs.jsonl", "test_split_size": 2, "max_steps": 2}
    settings |= {"output_dir": "out", "logging_steps": 1, "use_cpu": True, "method": method}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    run(load_recipe("r.yaml"))
    files = [tmp_path / "out" / name for name in ("README.md", "training_curves.png")]
    written = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    subprocess.run(
        [sys.executable, "-c", _FROM_FILES, "out"], check=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert [file.read_bytes() for file in files] == written


def test_an_older_manifest_makes_no_card(tmp_path):
    (tmp_path / "run_manifest.json").write_text(json.dumps({"manifest_version": 1, "method": "simpo"}))
    with pytest.raises(SimPOError, match="is from an older version and holds too little"):
        card_of_folder(tmp_path)
    with pytest.raises(SimPOError, match="holds no run_manifest.json, so it is not the folder of a run"):
        card_of_folder(tmp_path / "nowhere")
