"""`simpo generate`: the answers of a model to the prompts of a recipe, in a file that goes on where it was."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.load import describe_sources
from ..environment import library_versions
from ..errors import SimPOError
from ..log import get_logger
from ..recipe.answer_keys import GenerateSettings
from ..recipe.load import Recipe
from ..record.privacy import public_label
from .card import check_same, write_card
from .engines import Ready, make_ready
from .journal import Journal, only_writer
from .progress import Progress
from .prompts import Prompts, load_prompts
from .requests import Answer, Engine, Prompt, hash_of
from .row_files import check_ending, check_parquet, write_rows

logger = get_logger(__name__)

# Libraries whose versions the data card tells.
_TOLD = ("torch", "transformers")


def generate(recipe: Recipe, settings: GenerateSettings) -> Path:
    """Write a file of answers, one row a prompt, sorted by the rows' keys, and its data card; or go on with it.

    Args:
        recipe: its data gives the prompts, its model the answers.
        settings: how to sample, and where to write.

    Returns:
        The file.

    Raises:
        SimPOError: something is wrong with settings, data, model or server, before the work where it can be told; the
            output is of another run; the disk is full. What is finished is kept.
    """
    _check(settings)
    loaded = load_prompts(recipe.data)
    ready = make_ready(recipe, settings, loaded.prompts)
    identity = {"prompts": hash_of([[each.hash, dict(each.columns)] for each in ready.prompts]), **ready.identity}
    target = Path(settings.output or _usual_name(recipe, identity)).expanduser()
    check_parquet(target, [dict(prompt.columns) for prompt in ready.prompts])
    with only_writer(target):
        if target.exists():
            check_same(target, "generated", identity)
            logger.info(f"{target} is complete, with {len(ready.prompts):,} prompts. Nothing is left to do.")
            return target
        journal = Journal(target, identity)
        journal.open()
        engine = _answer_all(ready, settings, journal)
        rows = [journal.rows[key] for key in sorted(journal.rows)]
        facts = _facts(recipe, loaded, ready, rows) | {"promise": engine.promise, "identity": identity}
        write_card(target, {"generated": facts})
        write_rows(target, rows)
        journal.remove()
    cut = facts["share cut off"]
    logger.info(
        f"Wrote {facts['answers']:,} answers to {len(rows):,} prompts, {cut:.1%} of them cut off at max_new_tokens, to "
        f"{target}. Score them: simpo annotate {target} --score FILE.py:FUNCTION, or --reward_model NAME"
    )
    return target


def _check(settings: GenerateSettings) -> None:
    if settings.output:
        check_ending(Path(settings.output))
    if settings.temperature == 0 and len(settings.used_seeds) > 1:
        raise SimPOError(
            f"temperature is 0, which gives the same answer {len(settings.used_seeds)} times. Set num_answers: 1, or a "
            "temperature above 0."
        )


def _usual_name(recipe: Recipe, identity: dict[str, Any]) -> str:
    folder = str(recipe.training.output_dir).rstrip("/")
    return f"{folder}-answers-{hash_of(identity)[:8]}.jsonl"


def _answer_all(ready: Ready, settings: GenerateSettings, journal: Journal) -> Engine:
    """Answer what the journal does not hold yet, and return the engine."""
    salt = hash_of(ready.identity)
    keys = {prompt.hash: hash_of(prompt.hash, salt) for prompt in ready.prompts}
    is_done = [keys[prompt.hash] in journal.rows for prompt in ready.prompts]
    done = sum(is_done)
    if done:
        logger.info(f"Going on: {done:,} of {len(ready.prompts):,} prompts are answered already.")
    engine = ready.build()
    progress, tokens = Progress("prompts answered", len(ready.prompts), done), 0
    for group in engine.answers(ready.prompts, is_done):
        journal.add([_row(keys[prompt.hash], prompt, answers, settings) for prompt, answers in group])
        done += len(group)
        tokens += sum(answer.tokens or 0 for _, answers in group for answer in answers)
        progress.update(done, f"{progress.rate(tokens):,.0f} tokens/s")
    if not journal.rows:
        raise SimPOError("No prompt was answered; the reasons stand above.")
    return engine


def _row(key: str, prompt: Prompt, answers: Sequence[Answer], settings: GenerateSettings) -> dict[str, Any]:
    return {
        "key": key,
        "prompt": prompt.messages,
        "answers": [answer.text for answer in answers],
        "finish_reasons": [answer.finish_reason for answer in answers],
        "token_counts": [answer.tokens for answer in answers],
        "seeds": settings.used_seeds,
        **prompt.template_columns,
        **prompt.columns,
    }


def _facts(recipe: Recipe, loaded: Prompts, ready: Ready, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the data card says of the answers."""
    counts = [count for row in rows for count in row["token_counts"] if count is not None]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    left_out = {reason: each.count for reason, each in loaded.dropped.items()} | ready.left_out
    left_out["not answered"] = len(ready.prompts) - len(rows)
    tokens = {"all": sum(counts)}
    if counts:
        tokens |= {"mean": round(statistics.fmean(counts), 1), "median": statistics.median(counts)}
        tokens |= {"longest": max(counts)}
    return {
        "model": public_label(str(recipe.model.model_name_or_path)),
        "sources": [source["name"] for source in describe_sources(recipe.data) if source["use"] == "train"],
        "rows read": loaded.rows,
        "rows that repeat a prompt": loaded.repeated,
        "left out": {reason: count for reason, count in left_out.items() if count},
        "prompts": len(rows),
        "answers": len(reasons),
        "tokens of answers": tokens,
        "share cut off": round(reasons.count("length") / len(reasons), 4),
        "prompts of which all answers are the same": sum(
            len(set(row["answers"])) == 1 < len(row["answers"]) for row in rows
        ),
        "versions": {name: version for name, version in library_versions().items() if name in _TOLD},
    }
