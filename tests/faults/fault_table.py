"""The results of the suite as a page of Markdown, without names of machines or paths."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def write_table(page: Path, results: Sequence[dict[str, Any]], commit: str) -> None:
    """Write the page.

    Args:
        page: replaced.
        results: as the suite keeps them.
        commit: what was tested.
    """
    verdicts = {kind: Counter(_short(each) for each in results if each["kind"] == kind) for kind in _kinds(results)}
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    lines = [
        "# Faults put into runs",
        "",
        "Each case starts a small run, puts one fault into it and gives the same command again until it ends with 0.",
        "*equal*: the final weights are those of an uninterrupted run bit by bit, and so is every line of the log,",
        "times aside. Made by `make test-faults`.",
        "",
        f"{_commits(results, commit)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC;",
        f"Python {python_version()}, {versions}; on CPUs.",
        "",
        "| kind | cases | equal | failed | skipped | SIGKILLs | starts |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, counts in verdicts.items():
        lines.append(_counts(kind, counts, [each for each in results if each["kind"] == kind]))
    lines.append(_counts("all", sum(verdicts.values(), Counter()), results))
    lines += ["", "| case | starts | went on from step | verdict | notes |", "|---|---|---|---|---|"]
    for each in results:
        steps = ", ".join(map(str, each["went_on"]))
        cells = [each["case"], str(each["starts"]), steps, each["verdict"], "; ".join(each["notes"])]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _commits(results: Sequence[dict[str, Any]], commit: str) -> str:
    """Returns the commits that the cases were run on, the newest one first."""
    counts = Counter(each["commit"] for each in results)
    others = [f"{name} ({count} cases)" for name, count in counts.items() if name != commit]
    return f"Commit {commit} ({counts[commit]} cases)" + "".join(f" and {each}" for each in others)


def _kinds(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["kind"] for each in results))


def _short(result: dict[str, Any]) -> str:
    return result["verdict"].partition(":")[0].lower()


def _counts(kind: str, counts: Counter, results: Sequence[dict[str, Any]]) -> str:
    numbers = [len(results), counts["equal"], counts["failed"], counts["skipped"]]
    numbers += [sum(each[what] for each in results) for what in ("kills", "starts")]
    return f"| {kind} | {' | '.join(map(str, numbers))} |"
