"""Names instead of paths, and no secrets."""

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

from simpo_trainer.record.privacy import hub_name, local_label, private_texts, public_label, public_settings


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of a user called ada, which is also the working directory."""
    folder = tmp_path / "ada"
    (folder / "runs" / "base").mkdir(parents=True)
    (folder / "pairs.jsonl").write_text("{}")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.chdir(folder)
    return folder


def test_names_of_the_hub(home):
    assert hub_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert hub_name("gpt2") == "gpt2"
    for local in (
        None,
        "",
        "runs/base",
        str(home / "runs" / "base"),
        "~/runs/base",
        "./x/y",
        "/x/y",
        "a/b/c",
        "local file",
    ):
        assert hub_name(local) is None


def test_labels_tell_the_last_part_of_a_path(home):
    assert public_label("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert public_label(str(home / "runs" / "base")) == "local folder 'base'"
    assert public_label("pairs.jsonl") == "local file 'pairs.jsonl'"
    assert public_label("") == "not named"


def test_a_home_folder_has_no_name(home):
    assert local_label(home) == local_label("~") == local_label("/data/ada") == "a local folder"


def test_settings_lose_secrets_and_paths(home):
    class Strategy(Enum):
        END = "end"

    settings = {
        "output_dir": "/data/out",
        "hub_token": "secret",
        "model_init_kwargs": {"token": "secret", "cache_dir": "/x", "dtype": "float32"},
        "model_name_or_path": str(home / "runs" / "base"),
        "deepspeed": Path("/data/configs/zero3.json"),
        "report_to": ["none"],
        "run_name": "hf_" + "a" * 30,
        "hub_strategy": Strategy.END,
        "max_token_count": 3,
        "beta": 2.0,
        "push_to_hub": True,
        "seed": None,
    }
    assert public_settings(settings) == {
        "model_init_kwargs": {"dtype": "float32"},
        "model_name_or_path": "local folder 'base'",
        "deepspeed": "local folder 'zero3.json'",
        "report_to": ["none"],
        "run_name": "<token>",
        "hub_strategy": "end",
        "max_token_count": 3,
        "beta": 2.0,
        "push_to_hub": True,
        "seed": None,
    }


def test_texts_to_replace_come_longest_first(home):
    found = private_texts("runs/base", "Qwen/Qwen3-0.6B", None, "/data", secrets=("hf_x", None))
    assert found == {str(home / "runs" / "base"): "local folder 'base'", str(home): "~", "hf_x": "<token>"}
    assert list(found)[0] == str(home / "runs" / "base")


@pytest.mark.parametrize(
    "text",
    [
        "{% for message in messages %}{{ '<|user|>\\n' + message['content'] }}{% endfor %}" * 9,
        "/{{ messages }}\n",
        r".*\.(q|k)_proj",
        "a\\b",
    ],
)
def test_texts_that_look_a_little_like_paths_stay(text):
    assert public_settings({"chat_template": text}) == {"chat_template": text}


def test_keys_and_tokens_are_cleaned(tmp_path):
    found = public_settings(
        {"dataset_mixer": {str(tmp_path / "pairs.jsonl"): 1.0}, "x": "token hf_abcdefghijklmnopqrst"}
    )
    assert found == {"dataset_mixer": {"local folder 'pairs.jsonl'": 1.0}, "x": "token <token>"}
    assert public_settings("C:\\data\\pairs") != "C:\\data\\pairs"


def test_a_set_is_shown_in_the_same_order_in_every_process():
    """peft keeps the names of targets as a set: a run that goes on would count as another one."""
    shown = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from simpo_trainer.record.privacy import public_settings as p; print(p(set('abcdef')))",
            ],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert shown == {"['a', 'b', 'c', 'd', 'e', 'f']\n"}
