"""The tables and the picture of the demonstration."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from demo_scores import Evaluation, changed, paired_interval
from demo_search import Setting, Tried
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXAMPLES = 5
_LONGEST = 260
# The figures of held-out pairs that a run has left, at its `start` and at its `end`.
Results: TypeAlias = dict[str, dict[str, float]]
# Format of each figure of an evaluation.
_FORMATS = {
    "constraints met": ".1%",
    "prompts with all met": ".1%",
    "mean tokens": ".1f",
    "cut off": ".1%",
    "repeat rate": ".1%",
}


def show(
    console: Console,
    before: Evaluation,
    after: Evaluation,
    results: dict[str, dict[str, float]],
    best: Setting,
    tried: list[Tried],
) -> None:
    """Print what was searched, the figures before and after, each kind of constraint, and answers side by side.

    Args:
        console: where to.
        before: of the start model, on held-out prompts.
        after: of the trained one.
        results: the figures that the run has left.
        best: the setting that was chosen.
        tried: all that were.
    """
    console.print(_search_table(best, tried))
    console.print(figures_table(before, {"after": after}, {"after": results}))
    mean, low, high = paired_interval(before, after)
    gained, lost = changed(before, after)
    console.print(
        f"Share of constraints met, by prompt: {mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} (paired bootstrap "
        f"over {len(before.prompts)} prompts). {gained} constraints gained, {lost} lost.",
        highlight=False,
    )
    console.print(kinds_table(before, {"after": after}))
    console.print(_examples_table(before, after))


def figures_table(
    before: Evaluation,
    after: dict[str, Evaluation],
    results: dict[str, Results],
    title: str | None = None,
) -> Table:
    """Returns the figures of the start model and of others, a column each.

    Args:
        before: of the start model.
        after: of the others, by name.
        results: the figures that their runs have left, by name.
        title: instead of the number of prompts.
    """
    table = Table(title=title or f"{len(before.prompts)} held-out prompts, greedy answers", title_justify="left")
    for column in ("", "before", *after):
        table.add_column(column, justify="left" if not column else "right")
    for name, form in _FORMATS.items():
        values = [each.figures()[name] for each in (before, *after.values())]
        table.add_row(name, *(format(value, form) for value in values))
    first: Results = next(iter(results.values()), {})
    start = first.get("start", {})
    for name, key, form in (
        ("held-out pair accuracy", "accuracy", ".1%"),
        ("log-prob of chosen, nats per token", "chosen", "+.3f"),
    ):
        ends = [results.get(each, {}).get("end", {}).get(key) for each in after]
        table.add_row(name, *(_cell(value, form) for value in (start.get(key), *ends)))
    return table


def kinds_table(before: Evaluation, after: dict[str, Evaluation]) -> Table:
    """Returns the share of constraints met of each kind."""
    table = Table(title="Constraints met, by kind", title_justify="left")
    for column in ("", "constraints", "before", *after):
        table.add_column(column, justify="left" if not column else "right")
    others = [each.by_kind() for each in after.values()]
    for kind, (share, count) in before.by_kind().items():
        table.add_row(kind, str(count), f"{share:.0%}", *(f"{other[kind][0]:.0%}" for other in others))
    return table


def draw(path: Path, before: Evaluation, after: dict[str, Evaluation]) -> None:
    """Draw the share of constraints met by kind, before and after."""
    kinds, ways = before.by_kind(), {"before": before, **after}
    figure, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / len(ways)
    for place, (name, each) in enumerate(ways.items()):
        shares = [each.by_kind()[kind][0] for kind in kinds]
        axes.bar([x + (place - (len(ways) - 1) / 2) * width for x in range(len(kinds))], shares, width, label=name)
    axes.set_xticks(range(len(kinds)), list(kinds), rotation=30, ha="right")
    axes.set_ylabel("share of constraints met")
    axes.set_ylim(0, 1)
    axes.set_title(f"{len(before.prompts)} held-out prompts, greedy answers", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_result(path: Path, before: Evaluation, after: Evaluation, best: Setting, tried: Sequence[Tried]) -> None:
    """Write the figures as JSON."""
    mean, low, high = paired_interval(before, after)
    found = {
        "setting": vars(best),
        "searched": [{**vars(each.setting), "constraints met": each.share} for each in tried],
        "before": before.figures(),
        "after": after.figures(),
        "difference": {"mean": mean, "low": low, "high": high},
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _cell(value: float | None, form: str) -> str:
    return "not run" if value is None else format(value, form)


def _search_table(best: Setting, tried: list[Tried]) -> Table:
    table = Table(title="Searched, on training prompts without pairs", title_justify="left")
    for column in ("learning rate", "ratio", "beta", "epochs", "constraints met", ""):
        table.add_column(column, justify="right")
    for each in tried:
        setting = each.setting
        chosen = "chosen" if setting == best else ""
        numbers = (f"{value:g}" for value in vars(setting).values())
        table.add_row(*numbers, f"{each.share:.1%}", chosen)
    return table


def _examples_table(before: Evaluation, after: Evaluation) -> Table:
    table = Table(title=f"The first {EXAMPLES} held-out prompts by letters", title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column)
    for i in range(min(EXAMPLES, len(before.prompts))):
        texts = (before.prompts[i], _marked(before, i), _marked(after, i))
        table.add_row(*(Text(text) for text in texts))  # brackets in an answer are no markup
    return table


def _marked(found: Evaluation, i: int) -> str:
    answer = found.answers[i]
    shown = answer if len(answer) <= _LONGEST else answer[:_LONGEST] + " ..."
    return f"({sum(found.met[i])} of {len(found.met[i])} met) {shown}"
