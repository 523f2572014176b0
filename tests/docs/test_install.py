"""What docs/install.md says of versions and optional packages is what the package asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from transformers.integrations import INTEGRATION_TO_CALLBACK

from simpo_trainer.errors import SimPOError
from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import packages
from simpo_trainer.run.launcher import launcher_files

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = re.findall(r"^\| (.*) \| `(pip install [^`]*)`.* \|$", PAGE, re.MULTILINE)


def test_the_versions_are_those_of_the_project():
    assert PROJECT["requires-python"] == ">=" + re.search(r"needs Python ([\d.]+) or later", PAGE)[1]
    ranges = dict(re.match(r"([\w-]+)(.*)", needed).groups() for needed in PROJECT["dependencies"])
    for name in ("torch", "transformers"):
        assert ranges[name].startswith(">=" + re.search(rf"{name} ([\d.]+) or\s+later", PAGE)[1] + ",")
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert set(re.findall(r"torch==(\S+)", PAGE)) == {pinned}


@pytest.mark.parametrize(
    "setting",
    [
        "use_peft: true\nload_in_4bit: true",
        "use_peft: true\nload_in_8bit: true",
        "attn_implementation: flash_attention_2",
        "attn_implementation: flash_attention_3",
        "report_to: wandb",
    ],
)
def test_the_commands_are_those_of_the_messages(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "has_package", lambda name: False)
    monkeypatch.setattr(packages, "get_available_reporting_integrations", lambda: [])
    (tmp_path / "run.yaml").write_text(f"model_name_or_path: m\ndataset_name: d\noutput_dir: o\n{setting}\n")
    recipe = load_recipe(tmp_path / "run.yaml")
    with pytest.raises(SimPOError) as refusal:
        packages.check_packages(recipe.training, recipe.model)
    named = setting.splitlines()[-1].removesuffix(": true")
    assert f"`{_row(named)[1]}`" in str(refusal.value)


def test_reporters_and_launchers_exist():
    reporters = set(re.findall(r"[a-z]{4,}", _row("report_to")[0].partition(": ")[2]))
    assert reporters == {"wandb", "tensorboard", "trackio"} <= set(INTEGRATION_TO_CALLBACK)
    assert (
        set(re.findall(r"zero\d[a-z-]*", _row("launcher")[0]))
        == {"zero2", "zero3", "zero3-offload"}
        <= set(launcher_files())
    )


def _row(named: str) -> tuple[str, str]:
    """The cells of the optional package that something is for."""
    return next(row for row in OPTIONAL if named in row[0])
