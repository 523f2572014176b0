"""What docstrings and documents refer to is there, under the name that they give."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("simpo_trainer", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def missing(source: str) -> list[str]:
    """The names in a source's references that are neither in the package nor defined in the source."""
    names = re.findall(r":(?:class|func|meth|data):`~?([\w.]+)`", source)
    return [name for name in names if not (_in_package(name) or _defined(name, source))]


def _in_package(name: str) -> bool:
    if not name.startswith("simpo_trainer."):
        return False
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def _defined(name: str, source: str) -> bool:
    return re.search(rf"(?:def|class) {re.escape(name)}\b|^{re.escape(name)}\b.* = ", source, re.MULTILINE) is not None


def test_references_of_docstrings():
    found = {str(path.relative_to(ROOT)): missing(path.read_text(encoding="utf-8")) for path in SOURCES}
    found.pop("tests/docs/test_references.py")
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('""":class:`~simpo_trainer.data.drops.DropReport`"""', []),
        ('""":class:`~simpo_trainer.drops.DropReport`"""', ["simpo_trainer.drops.DropReport"]),
        ('def own():\n    """:func:`own`, :func:`other`"""', ["other"]),
    ],
)
def test_missing_references_are_found(source, names):
    assert missing(source) == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_of_documents(page):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:simpo_trainer|tests|scripts|recipes|docs)/[\w/.-]+)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert [name for name in re.findall(r"simpo_trainer(?:\.\w+)+", text) if not _in_package(name)] == []


def _anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.is_file(), file
        assert not anchor or anchor in _anchors(target), f"{file}#{anchor}"
