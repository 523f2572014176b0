"""Checks of the sets that a trainer is given, before they are tokenized."""

from collections.abc import Mapping
from typing import Any

from datasets import IterableDataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..errors import SimPOError


def check_given_sets(train: Any, evaluation: Any, args: TrainingArguments) -> None:
    """Check that there is something to train or evaluate on, and that the training has an end.

    Raises:
        SimPOError: no set is given, several are given to train on, there is nothing to
            evaluate on, or a stream comes without a number of steps.
    """
    if train is None and evaluation is None:
        raise SimPOError(
            "`train_dataset` is required: a `Dataset` or `IterableDataset` of preference rows, or a list of them. To "
            "evaluate alone, pass an `eval_dataset`."
        )
    if isinstance(train, Mapping):
        raise SimPOError(
            f"`train_dataset` must be a `Dataset` or `IterableDataset`; found the splits {', '.join(train)}. Pass one "
            "of them: train_dataset[...]."
        )
    if evaluation is None and args.eval_strategy != IntervalStrategy.NO:
        raise SimPOError(
            f"eval_strategy is {IntervalStrategy(args.eval_strategy).value}, but there is no `eval_dataset`. Pass one "
            "(train.train_test_split(test_size=0.05) makes two sets of one), or set eval_strategy='no'."
        )
    if isinstance(train, IterableDataset) and args.max_steps <= 0:
        raise SimPOError(
            "The training set is a stream, whose length is unknown, so num_train_epochs does not say when to stop. Set "
            "max_steps to the number of optimiser steps."
        )
