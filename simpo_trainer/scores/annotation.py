"""`simpo annotate`: a score for each answer, then rows to train on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..answers.card import card_path, read_card, write_card
from ..answers.journal import only_writer
from ..answers.requests import hash_of
from ..answers.row_files import ENDINGS, check_ending, check_parquet, write_rows
from ..errors import SimPOError
from ..log import get_logger
from ..recipe.answer_keys import AnnotateSettings
from .answer_rows import read_answers
from .decontamination import Decontamination, Match, left_out_path
from .scorer import Scorer
from .scorers import check_one_scorer, load_scorer
from .scoring import ScoredFile
from .selection import Selection, kept_columns, select

logger = get_logger(__name__)

# Hex digits of a hash in the name of a file.
_SHORT = 8

Rows = Sequence[Mapping[str, Any]]


def annotate(file: Path, settings: AnnotateSettings) -> Path:
    """Score the answers of a file, and write rows to train on.

    The scores are written beside the file of answers, as `NAME.scores-HASH`, and stay there: other rows to train on are
    made of them without scoring again. A call that was interrupted goes on where it was when it is repeated.

    Args:
        file: written by `simpo generate`.
        settings: the scorer, and which rows to make.

    Returns:
        The file of the rows to train on; with `pairs: none`, of the answers with their scores.

    Raises:
        SimPOError: a setting or the file cannot be used, there is a file of another run under the output's name, the
            disk is full, or no row can be made.
    """
    check_one_scorer(settings)
    if settings.output:
        check_ending(Path(settings.output))
    rows = read_answers(file)
    decontamination = _decontamination(settings)
    scorer = load_scorer(settings)
    content = hash_of(rows)
    if settings.pairs == "none":
        return _scores_alone(file, rows, content, scorer, settings)
    scored = ScoredFile(_named(file, "scores", content, scorer.identity), file, rows, content, scorer)
    selected_by = _selected_by(settings, decontamination)
    identity = hash_of(content, scorer.identity, selected_by)
    output = Path(settings.output) if settings.output else _named(file, "pairs", content, scorer.identity, selected_by)
    _check_output(output, (file, scored.path))
    if _is_complete(output, identity):
        logger.info(f"{output} is complete, with these settings: nothing to do. {_next_step(output)}")
        return output
    check_parquet(output, [{"prompt": row["prompt"], **kept_columns(row)} for row in rows])
    with ExitStack() as stack:
        for written in (scored.path, output):
            stack.enter_context(only_writer(written))
        annotated = scored.rows()
        matches = _matches(rows, decontamination)
        selection = select([row for row in annotated if row["key"] not in matches], settings.pairs, settings.least_gap)
        facts = _selected(settings, selected_by, selection, matches, len(rows))
        if not selection.rows:
            raise _nothing_left(facts, scored.path)
        if decontamination:
            write_rows(left_out_path(output), _listed(rows, matches))
        # A file is never without its card, by which the next call knows it.
        write_card(output, {**_sections(scored.path), "selected": {**facts, "identity": identity}})
        write_rows(output, selection.rows)
    logger.info(f"{len(selection.rows):,} rows to train on in {output}. {_next_step(output)}")
    return output


def _scores_alone(file: Path, rows: Rows, content: str, scorer: Scorer, settings: AnnotateSettings) -> Path:
    """Write the scores, if they are not there already, under the output's name; no rows to train on."""
    path = Path(settings.output) if settings.output else _named(file, "scores", content, scorer.identity)
    _check_output(path, (file,))
    _is_complete(path, hash_of(content, scorer.identity), "annotated")
    with only_writer(path):
        ScoredFile(path, file, rows, content, scorer).rows()
    logger.info(f"The answers with their scores are in {path}.")
    return path


def _named(file: Path, what: str, *decides: Any) -> Path:
    """Returns the path beside a file of answers of what is made of it."""
    return file.with_name(f"{file.stem}.{what}-{hash_of(*decides)[:_SHORT]}{file.suffix}")


def _next_step(output: Path) -> str:
    return f"Train on them: simpo train RECIPE --dataset_name {output}"


# --- The output -------------------------------------------------------------------------------------------------------


def _check_output(output: Path, sources: Sequence[Path]) -> None:
    """Check that neither the output nor its card takes the place of another file.

    Raises:
        SimPOError: it would.
    """
    others = [output.with_suffix(ending) for ending in ENDINGS if ending != output.suffix]
    for source in sources:
        if card_path(output).resolve() == card_path(source).resolve():
            raise SimPOError(
                f"output is {str(output)!r}; it and its card, {card_path(output).name}, would take the place of those "
                f"of {source}. Give another name."
            )
    for other in others:
        if other.exists():
            raise SimPOError(
                f"output is {str(output)!r}; its card, {card_path(output).name}, would take the place of that of "
                f"{other}. Give another name."
            )


def _is_complete(output: Path, identity: str, section: str = "selected") -> bool:
    """Returns whether the output was written with these settings before.

    Raises:
        SimPOError: it was written with others, or by something else.
    """
    if not output.exists():
        return False
    card = read_card(output)
    found = ((card or {}).get(section) or {}).get("identity")
    if found == identity:
        return True
    whose = "was written with other settings or of other answers" if found else "is no file of `simpo annotate`"
    raise SimPOError(
        f"{output} {whose} ({'see' if card else 'there is no'} {card_path(output).name}); it is not overwritten. Give "
        "another output, or remove it."
    )


def _sections(scored: Path) -> dict[str, Any]:
    """Returns what the card of the scores tells."""
    return {name: facts for name, facts in (read_card(scored) or {}).items() if name in ("generated", "annotated")}


# --- What is selected, as facts ---------------------------------------------------------------------------------------


def _selected_by(settings: AnnotateSettings, decontamination: Decontamination | None) -> dict[str, Any]:
    """Returns what decides which rows are made of the scores."""
    return {
        "pairs": settings.pairs,
        "least_gap": float(settings.least_gap),
        **({"decontaminated": decontamination.identity} if decontamination else {}),
    }


def _selected(
    settings: AnnotateSettings,
    selected_by: Mapping[str, Any],
    selection: Selection,
    matches: Mapping[str, Match],
    prompts: int,
) -> dict[str, Any]:
    """Returns the facts of the card on the selection."""
    by_set = Counter(f"decontaminated by {match.set_name}" for match in matches.values())
    left_out = {**dict(sorted(selection.left_out.items())), **dict(sorted(by_set.items()))}
    return {
        "rule": settings.pairs,
        **{name: value for name, value in selected_by.items() if name != "pairs"},
        "prompts": prompts,
        "prompts_left_out": left_out or 0,
        "empty_answers_passed_over": selection.empty,
        "identical_answers_passed_over": selection.identical,
        "of_these_with_another_score_than_the_first": selection.identical_but_scored_otherwise,
        "rows": len(selection.rows),
    }


def _nothing_left(facts: Mapping[str, Any], scored: Path) -> SimPOError:
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in dict(facts["prompts_left_out"]).items())
    return SimPOError(
        f"No row to train on is left of {facts['prompts']:,} prompts ({reasons}). The scores are in {scored}. Lower "
        "least_gap, or use a scorer that tells answers apart, or more and other answers."
    )


# --- Decontamination --------------------------------------------------------------------------------------------------


def _decontamination(settings: AnnotateSettings) -> Decontamination | None:
    return Decontamination(settings.decontaminate, settings.decontaminate_words) if settings.decontaminate else None


def _matches(rows: Rows, decontamination: Decontamination | None) -> dict[str, Match]:
    """Returns by its key each prompt that an evaluation set holds too."""
    if decontamination is None:
        return {}
    found = ((row["key"], decontamination.match(row["prompt"])) for row in rows)
    return {key: match for key, match in found if match is not None}


def _listed(rows: Rows, matches: Mapping[str, Match]) -> list[dict[str, Any]]:
    """Returns a row for each prompt that was left out, with the words for which it was."""
    return [
        {"key": row["key"], "prompt": row["prompt"], "set": match.set_name, "words": match.words}
        for row in sorted(rows, key=lambda row: row["key"])
        if (match := matches.get(row["key"]))
    ]
