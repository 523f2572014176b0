"""The package is built in layers: no folder imports one above it, and no files import each other in a circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layers import LAYERS

PACKAGE = Path(__file__).parents[2] / "simpo_trainer"
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}


def imports_of(file: str, source: str) -> Iterator[str]:
    """The files of the package that a file imports anywhere in it, for types alone too."""
    folder = file.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom):
            continue
        words = (node.module or "").split(".") if node.module else []
        if node.level:
            words = [*folder[: len(folder) - node.level + 1], *words]
        elif words[:1] == ["simpo_trainer"]:
            words = words[1:]
        else:
            continue
        for alias in node.names:
            named = "/".join([*words, alias.name])
            yield (
                named
                if named in FILES
                else "/".join(words)
                if "/".join(words) in FILES
                else "/".join([*words, "__init__"])
            )


IMPORTS = {file: set(imports_of(file, path.read_text(encoding="utf-8"))) for file, path in FILES.items()}


def folder_of(file: str) -> str:
    return file.split("/")[0]


def test_imports_are_found():
    """In every form that the package uses."""
    source = (
        "from ..errors import A\nfrom . import load\ndef f():\n    from .load import g\nfrom simpo_trainer.log import x"
    )
    assert set(imports_of("data/mixing", source)) == {"errors", "data/load", "log"}


def test_every_folder_has_a_place():
    assert {folder_of(file) for file in FILES} - {"__init__", "__main__"} == set(LAYERS)


def test_no_folder_imports_one_above_it():
    arrows = {
        (folder_of(file), folder_of(other))
        for file, others in IMPORTS.items()
        for other in others
        if file not in ("__init__", "__main__") and folder_of(other) != "__init__"
    }
    assert not [(lower, upper) for lower, upper in arrows if LAYERS.index(upper) < LAYERS.index(lower)]


def test_no_files_import_each_other_in_a_circle():
    """A package's own exports are no part of one."""
    below = {
        file: {other for other in others if not other.endswith("__init__")}
        for file, others in IMPORTS.items()
        if not file.endswith("__init__")
    }
    done: set[str] = set()

    def walk(file: str, path: tuple[str, ...]) -> None:
        assert file not in path, " -> ".join([*path, file])
        if file not in done:
            for other in sorted(below.get(file, ())):
                walk(other, (*path, file))
            done.add(file)

    for file in sorted(below):
        walk(file, ())


_FORKS = """
import os, sys
import torch, transformers, datasets, peft, trl
for line in sys.argv[1:]:
    if not (child := os.fork()):
        exec(line)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, line
"""


@pytest.mark.slow
def test_what_users_call_is_exported_by_its_package():
    """Each in a process that has imported nothing else of the package; they are forked once the libraries are there."""
    lines = [
        "from simpo_trainer import SimPOTrainer, SimPOConfig, SimPOError",
        "from simpo_trainer.answers import generate",
        "from simpo_trainer.rounds import iterate",
        "from simpo_trainer.scores import annotate",
        "from simpo_trainer.run import run, Interrupted",
        "from simpo_trainer.recipe import load_recipe",
        "from simpo_trainer.loss import simpo_loss, hinge_loss, simper_loss",
        "from simpo_trainer.data import DataConfig",
        "from simpo_trainer.tokens import resolve_chat_template",
    ]
    done = subprocess.run([sys.executable, "-c", _FORKS, *lines], cwd=PACKAGE.parent, timeout=120)
    assert done.returncode == 0


def test_all_losses_are_exported():
    from simpo_trainer import loss
    from simpo_trainer.loss import losses

    pure = {name for name in vars(losses) if name.endswith("_loss") and callable(vars(losses)[name])}
    assert set(loss.__all__) == pure
