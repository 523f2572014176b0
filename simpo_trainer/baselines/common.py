"""What trl's trainers lack of a run here: our token rows, float32 weights, the record, readable lines, a clean stop."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..batches.workers import shield_workers
from ..errors import SimPOError
from ..log import get_logger
from ..model.load import check_positions, check_trainable_dtypes, disable_dropout
from ..tokens.ids import TokenIds
from ..tokens.sets import TokenSet
from ..train.config import SimPOConfig
from ..train.processes import keep_scores_float32
from ..train.run_trainer import RunTrainer
from ..train.saving import check_saves, settle_generation
from ..train.start import say_size
from .settings import method_settings

logger = get_logger(__name__)


class BaselineTrainer(RunTrainer):
    """The part that the baselines share; it stands before trl's trainer among the bases.

    `shared` are the recipe's settings as SimPO takes them, which made the rows and the model; `token_ids` knows the ids
    that the model has embeddings for.
    """

    shared: SimPOConfig
    token_ids: TokenIds
    # What the rows of its training set are called.
    unit = "pairs"

    def method_settings(self) -> dict[str, Any]:
        """The settings of the method and of its data, for the record of the run."""
        return method_settings(self.method, self.args, self.shared)

    def _tokens(self, dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> TokenSet:
        """Returns the token rows that SimPO would train on, of a set that is given to the constructor."""
        found = self._token_set(dataset, name, tokenizer, self.shared, of_run=True)
        check_positions(model, found.longest)
        self.token_ids.check_set(found)
        return found

    def _begin(self) -> None:
        """Finish the construction after trl's constructor."""
        model: Any = self.model
        if self.shared.disable_dropout:
            disable_dropout(model)
        settle_generation(model)
        check_saves(model, cast(PreTrainedTokenizerBase, self.processing_class), self.args)
        if not self.is_deepspeed_enabled:
            _float_adapters(model)
            check_trainable_dtypes(model)
        keep_scores_float32(self.accelerator)
        self._attach(_BaselineStart(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`~simpo_trainer.train.run_trainer.RunTrainer.train`."""
        with _quiet():
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`, with workers that leave signals to the process that trains."""
        return shield_workers(super().get_train_dataloader())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`."""
        with _quiet():
            return super().evaluate(*args, **kwargs)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `Trainer.get_test_dataloader`, of rows whose ids the model has embeddings for."""
        self.token_ids.check_prepared(test_dataset, "test")
        return super().get_test_dataloader(test_dataset)

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step; every process must ask, and all get the same answer."""
        asked = torch.tensor(float(self.stop_request.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def _send_telemetry(self) -> None:
        """trl would tell its makers of the run; nobody is told here."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warning for a name that trl reads and that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing", FutureWarning)
        yield


def _float_adapters(model: torch.nn.Module) -> None:
    """Adapter weights as float32: trl makes those on a quantised model bfloat16, too coarse for small steps."""
    if not hasattr(model, "peft_config"):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class _BaselineStart(TrainerCallback):
    """Logs the size of the run and what is minimised."""

    def __init__(self, trainer: BaselineTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        say_size(self.trainer, self.trainer.shared.global_batch_size, self.trainer.unit)
        logger.info(self.trainer.describe_loss())
        if state.global_step:
            logger.info(f"Resuming after step {state.global_step}.")


def refused_as_error(build: Callable[[], Any], trainer: str) -> Any:
    """What `build` makes; what trl's constructor finds wrong becomes a message.

    Raises:
        SimPOError: with trl's words.
    """
    try:
        with _quiet():
            return build()
    except SimPOError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise SimPOError(f"trl's {trainer} refuses these settings: {error}") from error
