"""`samples.jsonl`: the answers that a model wrote while it trained, and the figures that tell of their collapse."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAMPLES_FILE = "samples.jsonl"
_RUN = 4


def repeat_rate(ids: Sequence[int]) -> float:
    """Returns the share of runs of four tokens in an answer that stood in it before."""
    runs = [tuple(ids[i : i + _RUN]) for i in range(len(ids) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(answers: Sequence[Sequence[int]], length: int = 2) -> float:
    """Returns the share of different ones among all runs of so many tokens in some answers (distinct-n)."""
    runs = Counter(tuple(ids[i : i + length]) for ids in answers for i in range(len(ids) - length + 1))
    return len(runs) / runs.total() if runs else 0.0


def figures_of_samples(answers: Sequence[Sequence[int]], ended: Sequence[bool]) -> dict[str, float]:
    """Returns the figures of the answers of a step.

    Args:
        answers: the token ids of each.
        ended: whether each ended by an end token.

    Returns:
        `tokens`, their mean length; `ended`, a share; `repeat_rate`, its mean; `distinct_2`.
    """
    count = len(answers)
    return {
        "tokens": sum(map(len, answers)) / count,
        "ended": sum(ended) / count,
        "repeat_rate": sum(map(repeat_rate, answers)) / count,
        "distinct_2": distinct(answers),
    }


def keep_until(file: Path, step: int) -> None:
    """Leave out the answers of later steps: the run goes on from an earlier one."""
    kept = [row for row in read_samples(file) if row["step"] <= step]
    if kept:
        write_samples(file, kept, anew=True)
    else:
        file.unlink(missing_ok=True)


def write_samples(file: Path, rows: Sequence[Mapping[str, Any]], *, anew: bool = False) -> None:
    """Add answers to the file, which its owner alone may read."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND)
    with open(os.open(file, flags, 0o600), "w" if anew else "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_samples(file: Path) -> list[dict[str, Any]]:
    """Returns the answers in the file; none without one. A last line that was cut off by a kill is left out."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]
