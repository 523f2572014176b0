"""The parts of a report on one run, each from its files; a part that a run has no facts for is left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..record.findings import Finding
from ..record.methods import METHODS
from ..record.pair_scores import ScoredSet
from . import charts
from .page import Html, element, gallery, joined, section, table, zoned
from .run_files import RunFiles

# Sources with the most pairs, so many.
_SOURCES = 20
# Samples of so many prompts are shown, each at so many steps.
_PROMPTS, _STEPS = 8, 4
_LONGEST, _LABEL = 1500, 100


def summary(run: RunFiles) -> Html:
    """Returns one paragraph on what was run, and the state that it is in."""
    facts = run.manifest
    model, batch, training = (facts.get(name) or {} for name in ("model", "batch", "training"))
    method = str(facts.get("method") or "simpo")
    title = METHODS[method].title if method in METHODS else method
    settings = facts.get(method) or {}
    loss = settings.get("loss_type")
    aims = [f"beta {settings['beta']:g}"] if isinstance(settings.get("beta"), int | float) else []
    if facts.get("target_margin") is not None:
        aims.append(f"target margin {facts['target_margin']:g} {facts.get('log_prob_unit')}")
    named = f" ({', '.join([str(loss), *aims])})" if loss else ""
    pairs = ((facts.get("data") or {}).get("sets") or {}).get("train") or {}
    devices = ", ".join((facts.get("hardware") or {}).get("devices") or ["an unknown machine"])
    sentence = (
        f"Model: {model.get('name') or model.get('label') or 'not named'}, "
        f"{_count(model.get('trained_parameters'))} of "
        f"{_count(model.get('parameters'))} weights trained, with {title}{named} on "
        f"{_count(pairs.get('pairs') or pairs.get('rows'))} {METHODS[method].rows if method in METHODS else 'rows'}: "
        f"{run.planned} steps of {batch.get('global', 'unknown')} at a learning rate of "
        f"{training.get('learning_rate', 'unknown')}, on {devices}."
    )
    return joined([element("p", sentence), element("p", _state(run), class_="soft")])


def verdict(run: RunFiles) -> Html:
    """Returns what the health monitor found."""
    if run.findings is None:
        return element("p", "This run is of a version without a health monitor.", class_="soft")
    if not run.findings:
        return element("div", "The health monitor found nothing to tell.", class_="finding good")
    worst = any(each.collapse for each in run.findings)
    head = f"{len(run.findings)} finding{'s' if len(run.findings) > 1 else ''} of the health monitor"
    head += "; the model was being ruined." if worst else "."
    kinds: dict[str, list[Finding]] = {}
    for found in run.findings:
        kinds.setdefault(found.rule, []).append(found)
    return joined([element("p", head), *map(_findings, kinds.values())])


def before_and_after(run: RunFiles, *, public: bool = False) -> Html:
    """Returns what became of the held-out pairs: figures, margins, reward against length, accuracy by groups.

    Args:
        run: the run.
        public: whether to leave out what the data say.
    """
    parts = []
    for name, scored in run.scores.items():
        several = len(run.scores) > 1
        parts.append(element("h3", name) if several else Html(""))
        parts.append(_held_out_table(scored))
        parts.append(gallery([chart for chart in (charts.margins(scored), charts.lengths(scored)) if chart]))
        parts.append(_by_length(scored))
        parts.append(Html("") if public else _by_source(scored))
    return section("Held-out pairs before and after", *parts)


def samples(run: RunFiles) -> Html:
    """Returns what the model answered over time, the steps beside each other."""
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return Html("")
    places = sorted({round(place) for place in np.linspace(0, len(steps) - 1, min(_STEPS, len(steps)))})
    shown = [steps[place] for place in places]
    answers: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in run.samples:
        answers.setdefault(str(row.get("prompt")), {})[row["step"]] = row
    rows = [
        [prompt[:_LONGEST], *(_answer(found.get(step)) for step in shown)]
        for prompt, found in list(answers.items())[:_PROMPTS]
    ]
    header = ["prompt", *(f"step {step}" for step in shown)]
    return section("Answers while it trained", table(header, rows, class_="samples"))


def data(run: RunFiles) -> Html:
    """Returns what was kept and dropped of each set, and the length bias of the pairs."""
    rows = []
    for name, found in ((run.manifest.get("data") or {}).get("sets") or {}).items():
        notes = found.get("tokenization") or {}
        dropped = ", ".join(f"{count} {reason}" for reason, count in (notes.get("dropped") or {}).items())
        cut = (
            f"{notes.get('truncated_prompts', 0)} prompts, {notes.get('truncated_answers', 0)} answers" if notes else ""
        )
        size = found.get("pairs") if found.get("pairs") is not None else found.get("rows")
        rows.append([name, "streamed" if size is None else size, dropped or "none", cut, notes.get("longest") or ""])
    parts = [table(["set", "pairs", "left out", "cut to length", "longest, tokens"], rows)] if rows else []
    start = run.manifest.get("start") or {}
    chosen, rejected = start.get("lengths/chosen"), start.get("lengths/rejected")
    if chosen and rejected:
        share = chosen / rejected - 1
        how = f"{abs(share):.0%} {'longer' if share > 0 else 'shorter'} than"
        parts.append(
            element(
                "p",
                f"On up to 64 training pairs, chosen answers have {chosen:.1f} tokens on average, rejected ones "
                f"{rejected:.1f}: chosen ones are {how if abs(share) >= 0.005 else 'as long as'} rejected ones.",
            )
        )
    return section("Data", *parts)


def settings(run: RunFiles) -> Html:
    """Returns the settings that differ from their defaults, and where each comes from."""
    recipe = run.manifest.get("recipe") or {}
    given, origins, defaults = (recipe.get(name) or {} for name in ("settings", "origins", "defaults"))
    same = [name for name, value in given.items() if name in defaults and defaults[name] == value]
    rows = [
        [name, _value(value), "" if defaults.get(name) is None else _value(defaults[name]), origins.get(name, "")]
        for name, value in given.items()
        if name not in same
    ]
    rows += [
        [f"changed at step {change.get('step')}", _value(change.get("settings")), "", ""]
        for change in run.manifest.get("changes") or []
    ]
    parts = [table(["setting", "value", "default", "from"], rows)] if rows else []
    if same:
        parts.append(element("p", f"Given, and the same as the default: {', '.join(same)}.", class_="soft"))
    return section("Settings", *parts)


def circumstances(run: RunFiles) -> Html:
    """Returns versions, machine, time and memory."""
    facts = run.manifest
    hardware, memory = facts.get("hardware") or {}, facts.get("peak_memory") or {}
    measured = (facts.get("results") or {}).get("metrics") or {}
    rows: list[list[Any]] = [
        ["started", zoned(facts.get("started"))],
        ["finished", zoned(facts.get("finished"))],
        ["training", f"{measured['train_runtime']:.0f} s" if "train_runtime" in measured else "unknown"],
        [
            "peak memory",
            f"{memory['bytes'] / 1e9:.2f} GB of the {memory.get('of')}" if memory.get("bytes") else "unknown",
        ],
        ["machine", f"{', '.join(hardware.get('devices') or ['unknown'])}; {hardware.get('platform', '')}"],
        ["processes", str(hardware.get("processes", "unknown"))],
        ["seed", str((facts.get("seeds") or {}).get("seed", "unknown"))],
    ]
    rows += [[name, version] for name, version in (facts.get("versions") or {}).items()]
    return section("Circumstances", table(["", ""], rows))


def differences(runs: Sequence[RunFiles]) -> Html:
    """Returns the settings in which several runs differ, as a table."""
    given = [(run.manifest.get("recipe") or {}).get("settings") or {} for run in runs]
    names = [name for name in dict.fromkeys(name for each in given for name in each) if name != "output_dir"]
    rows = [[name, *values] for name in names if len(set(values := [_value(each.get(name)) for each in given])) > 1]
    return section(
        "Settings in which they differ", table(["setting", *(run.name for run in runs)], rows) if rows else ""
    )


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation, equal values sharing their mean rank; None where one does not vary."""
    ranks = [_ranks(values) for values in (one, other)]
    if len(one) < 3 or any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[places]


def _held_out_table(scored: ScoredSet) -> Html:
    columns = [(label, each) for label, each in (("before", scored.start), ("after", scored.end)) if each is not None]
    rows: list[list[Any]] = []
    for title, figure in (
        (
            "accuracy (share of pairs whose chosen answer is likelier)",
            lambda each: float((each[:, 0] > each[:, 1]).mean()),
        ),
        ("margin, nats per token", lambda each: float((each[:, 0] - each[:, 1]).mean())),
        ("chosen answers, nats per token", lambda each: float(each[:, 0].mean())),
        ("rejected answers, nats per token", lambda each: float(each[:, 1].mean())),
        # One side at a time: where rejected answers are longer, both together tell that the model has learned which.
        (
            "Spearman's rho of reward and length, chosen answers",
            lambda each: spearman(each[:, 0], scored.lengths[:, 0]),
        ),
        ("the same, rejected answers", lambda each: spearman(each[:, 1], scored.lengths[:, 1])),
    ):
        found = [figure(each) for _, each in columns]
        rows.append([title, *("-" if value is None else float(value) for value in found)])
    return table([f"{len(scored.lengths)} pairs", *(label for label, _ in columns)], rows)


def _by_length(scored: ScoredSet) -> Html:
    """Returns the accuracy of pairs whose chosen answer is shorter, as long, or longer, and by its length."""
    chosen, rejected = scored.lengths[:, 0], scored.lengths[:, 1]
    edges = np.quantile(chosen, [0, 1 / 3, 2 / 3, 1])
    groups = [
        ("chosen answer shorter than the rejected one", chosen < rejected),
        ("as long", chosen == rejected),
        ("longer", chosen > rejected),
        *(
            (
                f"chosen answer of {low:.0f} to {high:.0f} tokens",
                (chosen >= low) & ((chosen < high) | (high == edges[-1])),
            )
            for low, high in zip(edges, edges[1:], strict=False)
            if high > low
        ),
    ]
    return _accuracies("accuracy by length", scored, groups)


def _by_source(scored: ScoredSet) -> Html:
    """Returns the accuracy of the pairs of each source, the largest first; nothing where that is not known."""
    if scored.sources is None:
        return Html("")
    names, counts = np.unique(scored.sources, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_SOURCES]
    return _accuracies("accuracy by source", scored, [(str(names[i]), scored.sources == names[i]) for i in order])


def _accuracies(title: str, scored: ScoredSet, groups: Sequence[tuple[str, np.ndarray]]) -> Html:
    """Returns the accuracy of groups of pairs before and after, those that have any."""
    sides = [(label, each) for label, each in (("before", scored.start), ("after", scored.end)) if each is not None]
    rows = [
        [
            name[:_LABEL],
            int(members.sum()),
            *(f"{(each[members, 0] > each[members, 1]).mean():.1%}" for _, each in sides),
        ]
        for name, members in groups
        if members.any()
    ]
    return table([title, "pairs", *(label for label, _ in sides)], rows)


def _findings(found: Sequence[Finding]) -> Html:
    """Returns what one rule told: the first time, and the steps and the last text where it told it again."""
    lines = [element("div", found[0].line)]
    if len(found) > 1:
        steps = ", ".join(str(each.step) for each in found[1:])
        lines.append(element("div", f"Worse at step {steps}; in the end: {found[-1].seen}", class_="soft"))
    return element("div", *lines, class_="finding")


def _state(run: RunFiles) -> str:
    status = run.manifest.get("status")
    done = f"step {run.step} of {run.planned or 'an unknown number'}"
    if run.finished:
        return f"Finished at {zoned(run.manifest.get('finished'))}, {done}."
    if status == "interrupted":
        return f"Stopped before its end, at {done}, {zoned(run.manifest.get('finished'))}."
    return f"Running or killed: {done} by the last log; its record was written at {zoned(run.modified)}."


def _answer(row: Mapping[str, Any] | None) -> Html:
    if row is None:
        return Html("")
    notes = f"{row.get('tokens')} tokens{'' if row.get('ended') else ', cut off'}, repeat rate {row.get('repeat_rate')}"
    return joined([str(row.get("answer"))[:_LONGEST], element("div", notes, class_="soft")])


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "an unknown number"
