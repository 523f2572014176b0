"""The page names every limit as the table of the code has it, and every rule."""

import ast
from pathlib import Path

from simpo_trainer import health
from simpo_trainer.health.limits import LIMITS

PAGE = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")


def _rules():
    """The names of rules in the code: the first argument of each finding that is made."""
    for file in Path(health.__file__).parent.glob("*_rules.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("Finding", "_of") and call.args:
                if isinstance(call.args[0], ast.Constant):
                    yield call.args[0].value


def test_the_page_has_the_limits_of_the_code():
    for name, limit in LIMITS.items():
        assert f"| {name} | {limit.value:g} | {limit.unit} | {limit.source} |" in PAGE


def test_the_page_names_every_rule():
    names = {*_rules(), "chosen falls", "both fall", "margin by rejected", "answers longer", "answers shorter"}
    assert len(names) > 15
    assert not {name for name in names if f"`{name}`" not in PAGE}
