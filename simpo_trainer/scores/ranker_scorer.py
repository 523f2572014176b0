"""The scorer that compares answers two by two, through the package llm-blender.

The tests have a stand-in for that package. Its version 0.0.2 has ranked with a random model; PairRM itself is untested.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import transformers.utils.hub
from huggingface_hub.constants import HF_HUB_CACHE

from ..errors import SimPOError, first_line
from ..log import get_logger
from ..recipe.answer_keys import AnnotateSettings
from ..record.privacy import public_label
from .scorer import Row, Scored

logger = get_logger(__name__)

_PACKAGE = "llm-blender"
# Rows are handed on, to be written to the disk, once they fill so many batches.
_BATCHES = 8


class RankerScorer:
    """Scores the answers of a prompt by comparing them with each other.

    The scores of a prompt's answers tell their order; those of different prompts cannot be compared. A prompt with one
    answer has nothing to compare, and no score.

    Args:
        settings: name the ranker, and how many prompts it reads at once.

    Raises:
        SimPOError: the package is not installed, or cannot be imported.
    """

    def __init__(self, settings: AnnotateSettings) -> None:
        self._name = str(settings.ranker)
        self._batch_size = settings.batch_size
        self._package = _imported()
        self._blender: Any = None
        self.identity: dict[str, Any] = {
            "scorer": "ranker",
            "name": public_label(self._name),
            "package": f"{_PACKAGE} {_version()}",
        }

    def scores(self, rows: Sequence[Row]) -> Iterator[list[Scored]]:
        """Yields rows with the scores of their answers.

        Raises:
            SimPOError: the ranker cannot be loaded.
        """
        self._blender = self._blender or self._loaded()
        by_count: dict[int, list[Row]] = {}
        for row in rows:
            by_count.setdefault(len(row["answers"]), []).append(row)
        size = _BATCHES * self._batch_size
        # The package compares only prompts with equally many answers at once.
        for count, alike in sorted(by_count.items()):
            for start in range(0, len(alike), size):
                yield self._ranked(alike[start : start + size], count)

    def _ranked(self, rows: Sequence[Row], count: int) -> list[Scored]:
        if count < 2:
            return [(row, [None] * count) for row in rows]
        found = self._blender.rank(
            [_text(row["prompt"]) for row in rows],
            [list(row["answers"]) for row in rows],
            return_scores=True,
            batch_size=self._batch_size,
        )
        return [(row, [float(score) for score in scores]) for row, scores in zip(rows, found, strict=True)]

    def _loaded(self) -> Any:
        try:
            blender = self._package.Blender()
            blender.loadranker(self._name)
            tokenizer = getattr(blender, "ranker_tokenizer", None)
            if tokenizer is not None and not hasattr(tokenizer, "batch_encode_plus"):
                tokenizer.batch_encode_plus = tokenizer.__call__  # its name in version 5 of transformers
        except Exception as error:  # the package lets any of them pass
            raise SimPOError(
                f"The ranker {self._name!r} could not be loaded by {_PACKAGE}: {first_line(error)}. ranker must be a "
                "folder or a name on the Hub that the package knows, such as llm-blender/PairRM."
            ) from error
        return blender


def _text(prompt: Sequence[Mapping[str, Any]]) -> str:
    """Returns a prompt as the one text that a ranker reads: what the user says, or all turns with who says them."""
    if len(prompt) == 1:
        return str(prompt[0].get("content") or "")
    return "\n".join(f"{str(message.get('role')).upper()}: {message.get('content') or ''}" for message in prompt)


def _imported() -> Any:
    # Version 0.0.2 of the package asks transformers for a name that version 5 no longer has.
    if not hasattr(transformers.utils.hub, "TRANSFORMERS_CACHE"):
        vars(transformers.utils.hub)["TRANSFORMERS_CACHE"] = HF_HUB_CACHE
    try:
        return importlib.import_module("llm_blender")
    except ImportError as error:
        if error.name == "llm_blender":
            raise SimPOError(
                f"A ranker needs the package {_PACKAGE}, which is not installed. Install it (`pip install "
                f"{_PACKAGE}`), or score by reward_model."
            ) from None
        raise SimPOError(
            f"The package {_PACKAGE} is installed, but cannot be imported: {first_line(error)}. Install what it needs, "
            "or score by reward_model."
        ) from error


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "of unknown version"
