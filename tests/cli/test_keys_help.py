"""The keys in `simpo train --help`: what the classes say, on lines that fit, without loading torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simpo_trainer.cli.app import app
from simpo_trainer.cli.keys_help import read_keys_help

ROOT = Path(__file__).parents[2]
# The parts of the script import each other by name, as they do when it runs.
sys.path.append(str(ROOT / "scripts"))

import keys_help as script  # noqa: E402


def test_the_file_says_what_the_classes_say():
    assert read_keys_help() == script.keys_help(), "run `make keys-help`"


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("per_device_train_batch_size", "default: 8, or fewer for global_batch_size"),
        ("gradient_accumulation_steps", "default: 1, or what global_batch_size asks for"),
        ("max_prompt_length", "default: 1800, which follows from max_length"),
        ("beta", "default: 2 for sigmoid; other losses have their own"),
        ("learning_rate", "default: 5e-7 for all weights, ten times that for an adapter"),
        ("eval_strategy", "default: no"),
        ("alpha", "default: 0.25"),
        ("output_dir", "required"),
    ],
)
def test_the_default_is_what_a_run_uses(name, default):
    [help_of_key] = [keys[name] for keys in read_keys_help().values() if name in keys]
    assert help_of_key.default == default


def test_no_default_is_left_to_the_reader():
    defaults = {name: text.default for keys in read_keys_help().values() for name, text in keys.items()}
    assert not [name for name, text in defaults.items() if "None" in text or not text.startswith(("default", "requ"))]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: script.GROUPS["Loss"].remove("beta"), "beta: in no group"),
        (lambda: script.GROUPS["Loss"].append("lora_r"), "lora_r: in two groups"),
        (lambda: script.GROUPS["Loss"].append("bta"), "bta: no key of a recipe"),
        (lambda: script.GROUPS["Loss"].append("tf32"), "tf32: without a text in MEANINGS"),
        (lambda: script.MEANINGS.update(beta="..."), "beta: in MEANINGS without need"),
        (lambda: script.DEFAULTS.update(tf32="..."), "tf32: in DEFAULTS without a group"),
    ],
)
def test_a_key_needs_a_group_and_a_text(monkeypatch, change, problem):
    for name in ("MEANINGS", "DEFAULTS"):
        monkeypatch.setattr(script, name, dict(getattr(script, name)))
    monkeypatch.setattr(script, "GROUPS", {title: list(names) for title, names in script.GROUPS.items()})
    change()
    with pytest.raises(ValueError, match=problem):
        script.keys_help()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("words", ["", "train", "recipe", "recipe show", "compare", "losses"])
def test_help_in_a_file_is_plain_text_that_fits(monkeypatch, words, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = CliRunner().invoke(app, [*words.split(), "--help"]).stdout
    assert len(text) > 300
    assert "\x1b" not in text and "…" not in text
    assert not [line for line in text.splitlines() if len(line) > width and "https://" not in line]


def test_help_needs_no_torch():
    """Every help answers at once: neither torch nor transformers is imported for it."""
    code = (
        "import sys\nfrom simpo_trainer.cli import main\n"
        "for words in ('', 'train', 'recipe', 'recipe list', 'recipe show', 'compare', 'losses'):\n"
        "    try: main([*words.split(), '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_ends_quietly_where_nobody_reads_on():
    """As in `simpo train --help | head`; here nobody reads from the beginning."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "simpo_trainer", "train", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize("written", ["--num_processes", "--num-processes"])
def test_an_option_may_have_underscores(written):
    assert "Invalid value for '--num-processes'" in CliRunner().invoke(app, ["train", "r.yaml", written, "0"]).stderr
