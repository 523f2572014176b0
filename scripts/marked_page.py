"""Writes what a command found between two marks of a page."""

import re
from pathlib import Path


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between the marks; they stay.

    Args:
        page: a file that has both.
        marks: comments of the page.
        text: what goes between them.
    """
    begin, end = marks
    pattern = re.escape(begin) + ".*" + re.escape(end)
    whole = re.sub(pattern, lambda _: f"{begin}\n\n{text}\n\n{end}", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    page.write_text(whole, encoding="utf-8")
