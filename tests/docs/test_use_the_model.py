"""The snippets of docs/use-the-model.md run on what a run leaves, and do what the page says."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import tiny_model
from simpo_trainer import SimPOConfig, SimPOTrainer
from toy import toy_pairs, toy_tokenizer, user

PAGE = Path(__file__).parents[2] / "docs" / "use-the-model.md"
WHOLE, ADAPTER, MERGE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
IDS = torch.arange(3, 20)[None]


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """The folder of a starting model, below the folder in which the snippets run."""
    monkeypatch.chdir(tmp_path)
    tokenizer = toy_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")


def train(folder, peft_config=None):
    """Train `base` for two steps large enough that the result is another model."""
    arguments = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "warmup_steps": 0}
    trainer = SimPOTrainer(
        "base",
        SimPOConfig(folder, max_steps=2, max_length=128, save_strategy="no", use_cpu=True, **arguments),
        train_dataset=Dataset.from_list(toy_pairs(8, conversational=True)),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model()


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS).logits


@torch.inference_mode()
def likeliest(model, ids, end, count):
    """The likeliest next token again and again, each from the whole text before it; without `generate`."""
    found = []
    while len(found) < count and end not in found:
        found.append(int(model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def test_the_whole_model_answers():
    train("runs/mine")
    short = WHOLE.replace("max_new_tokens=256", "max_new_tokens=8")
    assert short != WHOLE
    names: dict = {}
    exec(short, names)
    trained = AutoModelForCausalLM.from_pretrained("runs/mine")
    assert trained.dtype == torch.float32, "the page says that the folder has float32 weights"
    torch.testing.assert_close(dict(names["model"].state_dict()), dict(trained.bfloat16().state_dict()))
    tokenizer = AutoTokenizer.from_pretrained("runs/mine")
    text = tokenizer.apply_chat_template([user("Name a red fruit.")], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = likeliest(names["model"], ids, tokenizer.eos_token_id, 8)
    assert names["answer"] == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_the_merged_model_has_the_logits_of_the_adapter(targets):
    train("runs/mine-lora", LoraConfig(target_modules=targets))
    names: dict = {}
    exec(ADAPTER, names)
    assert isinstance(names["model"], PeftModel) and names["model"].dtype == torch.bfloat16
    assert names["tokenizer"].chat_template == toy_tokenizer().chat_template
    adapted = logits(AutoPeftModelForCausalLM.from_pretrained("runs/mine-lora", dtype="float32"))
    assert (adapted - logits(AutoModelForCausalLM.from_pretrained("base"))).abs().max() > 0.01
    exec(MERGE, names)
    saved = AutoModelForCausalLM.from_pretrained("runs/mine-merged")
    assert not isinstance(saved, PeftModel) and saved.dtype == torch.float32
    for model in (names["merged"], saved):
        torch.testing.assert_close(logits(model), adapted, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained("runs/mine-merged").get_vocab() == toy_tokenizer().get_vocab()
