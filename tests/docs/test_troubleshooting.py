"""The messages that docs/troubleshooting.md quotes are those of the software."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> ")]
QUOTED += re.findall(r"^\| `([^`]*…[^`]*)` \|", PAGE, re.MULTILINE)
GAP = "…"


def texts_of(source: str) -> list[str]:
    """The texts of a module, adjacent ones joined, with a gap for each value that is put in."""
    return [_rendered(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant | ast.JoinedStr)]


def _rendered(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_rendered, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else GAP


@pytest.fixture(scope="module")
def messages():
    files = sorted((ROOT / "simpo_trainer").rglob("*.py"))
    return [text for file in files for text in texts_of(file.read_text(encoding="utf-8"))]


def test_texts_are_found_as_they_are_written():
    source = 'error = f"{name}: {count} of {total} " "are left"  # no part of it\nplain = "a" "b"'
    assert {f"{GAP}: {GAP} of {GAP} are left", "ab"} <= set(texts_of(source))


def test_the_page_quotes_messages():
    assert len(QUOTED) > 25 and len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_each_quoted_message_stands_in_the_source(quoted, messages):
    assert len(quoted.replace(GAP, "").strip()) > 10, "too short to find anything"
    assert any(quoted in text for text in messages)
