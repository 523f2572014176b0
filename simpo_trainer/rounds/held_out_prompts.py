"""The prompts of an iteration: those that are answered for training, and those that are held out to measure it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ..answers.prompts import read_prompts
from ..answers.requests import Prompt
from ..data.load import load_test_rows, load_training_rows
from ..data.mixing import exact
from ..data.settings import DataConfig
from ..errors import SimPOError
from ..log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class PromptSplit:
    """Prompts to train on and held-out ones, each sorted by their hashes; none is in both."""

    train: list[Prompt]
    held_out: list[Prompt]


def split_prompts(config: DataConfig) -> PromptSplit:
    """Load the prompts of a recipe's data, and hold those out that are to measure.

    They are the prompts of the evaluation split, or else `test_split_size` of the prompts: those with the lowest
    hashes, which do not depend on the order of the rows. A prompt that is held out is never answered for training.

    Raises:
        SimPOError: there are none to hold out, or none is left; or as `load_prompts`.
    """
    if config.test_split_size is not None:
        prompts = read_prompts(load_training_rows(config), config).prompts
        count = _count(config.test_split_size, len(prompts))
        return PromptSplit(prompts[count:], prompts[:count])
    test_rows = load_test_rows(config)
    if not test_rows:
        raise SimPOError(
            "There are no held-out prompts, and without them nothing tells which round is best. Set test_split_size: "
            "0.1 to hold out a share of the prompts, or dataset_test_split or eval_dataset_name for prompts of their "
            "own."
        )
    held_out = read_prompts(test_rows, config).prompts
    return PromptSplit(_without(read_prompts(load_training_rows(config), config).prompts, held_out), held_out)


def _count(size: float, prompts: int) -> int:
    count = ceil(prompts * exact(size)) if size < 1 else int(size)
    if count >= prompts:
        raise SimPOError(
            f"test_split_size {size} takes {count} of {prompts} prompts, which leaves none to train on. Lower it."
        )
    return count


def _without(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Prompt]:
    held = {prompt.hash for prompt in held_out}
    kept = [prompt for prompt in prompts if prompt.hash not in held]
    if not kept:
        raise SimPOError(
            f"Each of the {len(prompts):,} prompts to train on is held out too. Give prompts of their own to one side."
        )
    if left_out := len(prompts) - len(kept):
        logger.warning(f"{left_out:,} prompts to train on are held out too, and are left out of the training.")
    return kept
