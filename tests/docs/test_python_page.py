"""The examples of docs/python.md run, in the order in which they stand there."""

import json
import re
from pathlib import Path

import pytest

from models import as_text, random_pairs, tiny_model, word_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
PAIRS = [pair for pair in random_pairs(40) if len(pair["chosen_ids"]) > 1 and len(pair["rejected_ids"]) > 1]


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    Path("pairs.jsonl").write_text("".join(json.dumps(as_text(pair)) + "\n" for pair in PAIRS))
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 4
    names: dict = {}
    for example in examples:
        exec(example.replace("Qwen/Qwen3-0.6B", "model"), names)
    assert names["metrics"]["eval_loss"] > 0
    runs = sorted(folder.name for folder in Path("runs").iterdir())
    assert runs == ["floored", "mine", "mine-lora", "mine-stopped"]
    for name in runs:
        files = {file.name for file in (Path("runs") / name).iterdir()}
        weights = "adapter_model.safetensors" if name == "mine-lora" else "model.safetensors"
        assert {weights, "README.md", "run_manifest.json", "train_results.json", "trainer_state.json"} <= files
    assert (Path("runs") / "mine" / "training_curves.png").is_file()
    assert "FlooredSimPOTrainer" in (Path("runs") / "floored" / "README.md").read_text()
