"""Add to trl's trainers what a run needs: our token rows, float32 weights, the record, readable logs, a clean stop."""

from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..batches.batch import PairCollator
from ..batches.loader import evaluation_pairs, pair_loader
from ..batches.workers import shield_workers
from ..errors import SimPOError
from ..log import get_logger
from ..model.adapters import check_adapter, refusal
from ..model.load import check_positions, check_trainable_dtypes, disable_dropout
from ..model.renamed import without_rename_warning
from ..model.scoring import add_scoring_forward, check_scoring
from ..record.methods import METHODS
from ..tokens.ids import TokenIds
from ..tokens.sets import TokenSet
from ..train.best_metric import check_best_metric
from ..train.config import SimPOConfig
from ..train.optimisation import check_optimisation
from ..train.run_trainer import RunTrainer
from ..train.saving import check_saves, settle_generation
from ..train.sharding import settle_sharding
from ..train.start import say_size, say_unit
from .settings import method_settings

logger = get_logger(__name__)


class BaselineTrainer(RunTrainer):
    """The base class of the baselines; a subclass lists it before trl's trainer.

    `shared` are the recipe's settings in SimPO's form, used to make the rows and the model; `token_ids` checks that the
    model has embeddings for ids.
    """

    shared: SimPOConfig
    token_ids: TokenIds
    # The word for the rows of its training set.
    unit = "pairs"

    def method_settings(self) -> dict[str, Any]:
        """Returns the settings of the method and of its data, for the record of the run."""
        return method_settings(self.method, self.args, self.shared)

    def _prepare(self, args: TrainingArguments, shared: SimPOConfig) -> None:
        """Begin the construction: check the settings before model and data are loaded.

        Raises:
            SimPOError: optimiser or schedule cannot be built, or nothing measures the metric of the best model.
        """
        self.shared, self.token_sets = shared, {}
        check_optimisation(args)
        check_best_metric(args, absent=METHODS[self.method].unmeasured)

    def _tokens(self, dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> TokenSet:
        """Returns the token rows that SimPO would train on, for a set that the constructor got."""
        found = self._token_set(dataset, name, tokenizer, self.shared, of_run=True)
        check_positions(model, found.longest)
        self.token_ids.check_set(found)
        return found

    def _begin(self, *, has_new_adapter: bool) -> None:
        """Finish the construction, after trl's constructor."""
        model: Any = self.model
        if isinstance(model, PeftModel):
            check_adapter(model, is_new=has_new_adapter)
        if self.shared.disable_dropout:
            disable_dropout(model)
        settle_generation(model)
        check_saves(model, cast(PreTrainedTokenizerBase, self.processing_class), self.args)
        if not self.is_deepspeed_enabled:
            _float_adapters(model)
            check_trainable_dtypes(model)
        settle_sharding(self.accelerator, model)
        self._scores_pairs = bool(super().held_out_sets()) and self._prepare_scoring()
        self._attach(_BaselineStart(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Like :meth:`~simpo_trainer.train.run_trainer.RunTrainer.train`, without one warning of trl."""
        with without_rename_warning():
            return super().train(*args, **kwargs)

    def _prepare_scoring(self) -> bool:
        """Teach the model to score pairs as SimPO does; returns False for a model that this scoring does not fit."""
        model: Any = self.model
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        try:
            add_scoring_forward(base)
            with self.accelerator.autocast():
                check_scoring(base)
        except SimPOError:
            logger.warning(
                f"The held-out pairs are not measured per token: SimPO's scoring does not fit a {type(base).__name__}."
            )
            return False
        return True

    def held_out_sets(self) -> dict[str, Any]:
        """Like the method of the base class; nothing for a model that cannot be scored."""
        return super().held_out_sets() if self._scores_pairs else {}

    def held_out_batches(self, rows: Any) -> DataLoader:
        """Returns this process's micro-batches of rows, an answer a row, of the size of its evaluations."""
        pairs = evaluation_pairs(rows, self.args, self.accelerator)
        return pair_loader(rows, pairs, PairCollator(self.token_ids.pad_id), self.args)

    def get_train_dataloader(self) -> DataLoader:
        """Override `Trainer.get_train_dataloader`: its workers ignore signals, which the training process handles."""
        return shield_workers(super().get_train_dataloader())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Like `Trainer.evaluate`, without one warning of trl."""
        with without_rename_warning():
            return super().evaluate(*args, **kwargs)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Override `Trainer.get_test_dataloader`: check that the model has embeddings for all ids of the rows."""
        self.token_ids.check_prepared(test_dataset, "test")
        return super().get_test_dataloader(test_dataset)

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step, the same on all processes; every process must call it."""
        asked = torch.tensor(float(self.stop_request.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def _send_telemetry(self) -> None:
        """Override trl's method, which would send data about the run to its developers: send nothing."""


def _float_adapters(model: torch.nn.Module) -> None:
    """Convert adapter weights to float32: on a quantised model, trl makes them bfloat16, too coarse for small steps."""
    if not hasattr(model, "peft_config"):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class _BaselineStart(TrainerCallback):
    """Logs the size of the run and its loss."""

    def __init__(self, trainer: BaselineTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        say_size(self.trainer, self.trainer.shared.global_batch_size, self.trainer.unit)
        logger.info(self.trainer.describe_loss())
        say_unit(self.trainer)
        if state.global_step:
            logger.info(f"Resuming after step {state.global_step}.")


def refused_as_error(build: Callable[[], Any], trainer: str) -> Any:
    """Returns the result of `build`, which calls trl's constructor; its errors become messages for the user.

    Raises:
        SimPOError: trl refuses the settings; the message holds its own.
    """
    try:
        with without_rename_warning():
            return build()
    except SimPOError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise SimPOError(f"trl's {trainer} refuses these settings: {refusal(error)}") from error
