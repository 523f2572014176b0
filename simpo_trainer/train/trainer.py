"""`SimPOTrainer`: one concatenated forward over chosen and rejected answers, no reference model.

The optimiser step follows the mean over the pairs of the global batch, however that batch is split into processes,
micro-batches and accumulation steps. The pieces: `batches/order.py` deals the pairs out, `get_batch_samples` counts
them over all processes, `compute_loss` divides by that count.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any, NamedTuple, Never, cast

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..batches.batch import Batch, PairCollator, count_tokens, on_device
from ..batches.loader import Collator, pair_loader, training_pairs
from ..batches.order import PairBatchSampler
from ..batches.stream import StreamedPairs
from ..errors import SimPOError
from ..log import get_logger
from ..loss.in_words import loss_in_words
from ..loss.metrics import MetricSums, PairRecords, accumulation_dtype, pair_metrics
from ..model.experts import BalanceTerm
from ..model.layout_choice import check_attention_trains, choose_layout, saved_tokens
from ..model.load import check_positions, check_trainable_dtypes, load_model, load_tokenizer, prepare_model
from ..model.modes import in_training
from ..model.scoring import AnswerScores, add_scoring_forward, check_scoring, score_batch
from ..record.methods import METHODS
from ..tokens.ids import TokenIds, count_embeddings
from ..tokens.sets import columns_of, spread_rows
from .arguments import refuse_unknown_arguments
from .best_metric import check_best_metric
from .config import SimPOConfig
from .evaluation import PairEvaluation, absent_metrics
from .facts import own_settings
from .finite import FiniteCallback, FiniteCheck, steps_in_backward
from .given_sets import check_given_sets
from .optimisation import check_optimisation
from .saving import check_saves, settle_generation
from .sharding import settle_sharding
from .start import StartReport

logger = get_logger(__name__)


def _check_arguments(
    trainer: type, model: Any, args: Any, tokenizer: Any, adapter: Any, unknown: Mapping[str, Any]
) -> None:
    """Refuse arguments that the constructor does not have, and values that cannot be a model or settings."""
    refuse_unknown_arguments(trainer.__name__, unknown, SimPOConfig, signature(SimPOTrainer.__init__).parameters)
    if not isinstance(model, str | nn.Module):
        raise SimPOError(
            f"model is {'None' if model is None else f'a {type(model).__name__}'}; it must be a folder, a name on the "
            "Hugging Face Hub, a PreTrainedModel or a PeftModel."
        )
    if args is not None and not isinstance(args, SimPOConfig):
        raise SimPOError(f"args is a {type(args).__name__}; it must be a SimPOConfig: SimPOConfig(output_dir=...).")
    if tokenizer is not None and not callable(getattr(tokenizer, "save_pretrained", None)):
        raise SimPOError(
            f"processing_class is a {type(tokenizer).__name__}; it must be a tokenizer: "
            "AutoTokenizer.from_pretrained(...)."
        )
    if adapter is not None and not isinstance(adapter, PeftConfig):
        raise SimPOError(
            f"peft_config is a {type(adapter).__name__}; it must be a configuration of peft: "
            'LoraConfig(target_modules="all-linear").'
        )


class _StepTotals(NamedTuple):
    """Sums over the micro-batches of one optimiser step on all processes."""

    pairs: float
    tokens: float
    chosen_tokens: float
    stop_requests: float


class SimPOTrainer(PairEvaluation):
    """Trains a causal language model with SimPO (arXiv 2405.14734) on preference pairs.

    Another loss is a subclass that overrides :meth:`pair_loss`.

    Args:
        model: folder or Hub name, a `PreTrainedModel`, or a `PeftModel` whose adapter is trained on.
        args: settings; the paper's defaults if not given.
        data_collator: makes a :class:`~simpo_trainer.batches.batch.Batch` of tokenized pairs; the padded layout by
            default.
        train_dataset: rows `{prompt, chosen, rejected}` of strings or messages, with explicit or implicit prompt; or
            rows that already hold `prompt_ids`, `chosen_ids`, `rejected_ids`. Or prompts with ranked answers: `{prompt,
            responses, scores}` (or `ranks`), or `prompt_ids`, `response_ids`, `chosen`, `rejected`. A stream needs
            `max_steps`.
        eval_dataset: the same, or a mapping from names to such sets, evaluated one by one. A stream is read once.
        processing_class: the tokenizer; loaded from the model's name by default.
        compute_metrics: gets an `EvalPrediction` whose predictions are log-probabilities (chosen, rejected) in the unit
            of `logps/*` and whose label ids are answer lengths, both (pairs, 2) in the order of the set, the pairs of a
            prompt's ranked answers one after the other.
        callbacks: added to the default ones.
        optimizers: optimiser and scheduler to use instead of the arguments' own.
        peft_config: puts a new adapter on the model.

    Raises:
        SimPOError: settings, model or data cannot give the training that was asked for.
    """

    args: SimPOConfig
    # Set on the class because the loss returned by `compute_loss` is divided by the pairs of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SimPOConfig | None = None,
        data_collator: Collator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        peft_config: PeftConfig | None = None,
        **unknown: Never,
    ):
        _check_arguments(type(self), model, args, processing_class, peft_config, unknown)
        name = os.path.expanduser(model) if isinstance(model, str) else model.config._name_or_path
        given = args or SimPOConfig(output_dir=f"{name.rstrip('/').split('/')[-1] or 'model'}-SimPO")
        args = given.settled()
        check_given_sets(train_dataset, eval_dataset, args)
        check_optimisation(args, optimizers)
        if isinstance(model, str):
            model = load_model(name, args, adapter_follows=peft_config is not None, bf16=bool(args.bf16))
        elif args.model_init_kwargs:
            raise SimPOError("model_init_kwargs is set, but the model is an object already; it would do nothing there.")
        model = prepare_model(model, args, peft_config, seed=args.seed)
        args = given.settled_for(model)
        processing_class = processing_class or load_tokenizer(name, args)
        settle_generation(model)
        model.add_model_tags(list(METHODS[self.method].tags))
        self.args = args
        check_saves(model, processing_class, args)
        self._balance = BalanceTerm.of_run(model.config, args)
        if compute_metrics is None:
            absent = absent_metrics(args.objective, parts=self._logs_parts, balanced=self._balance is not None)
            check_best_metric(args, eval_dataset, absent)
        base_model = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        add_scoring_forward(base_model)

        # Before `super().__init__`, which wants to know the data sets.
        self._tokenizer = processing_class
        self._token_ids = TokenIds(processing_class, count_embeddings(model))
        self._token_ids.check_pad_token()
        self._model_to_train = model
        self.token_sets = {}
        train_dataset = self._tokenized(train_dataset, "train", of_run=True)
        eval_dataset = self._tokenized(eval_dataset, "eval", of_run=True)
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, data_collator or PairCollator(self._token_ids.pad_id)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Older versions of the parent read this instead of `loss_is_scaled_for_ga`.
        self.model_accepts_loss_kwargs = True
        if not self.is_deepspeed_enabled:
            check_trainable_dtypes(model)
        settle_sharding(self.accelerator, model)
        with self.accelerator.autocast():
            check_scoring(base_model)
        self._lay_out(own_collator=data_collator is not None)
        self._train_pairs: PairBatchSampler | StreamedPairs
        self._train_sums = MetricSums()
        self._eval_sums = MetricSums()
        self._eval_records = PairRecords()
        self._step_totals = _StepTotals(0.0, 0.0, 0.0, 0.0)
        self.finite = FiniteCheck()
        for callback in (_NewWindow(self), FiniteCallback(self)):
            self.add_callback(callback)
        self._attach(StartReport(self))

    # ---- The loss ----

    def pair_loss(self, chosen: AnswerScores, rejected: AnswerScores, *, margin: Tensor) -> Tensor:
        """Returns the loss of each pair, shape (N,). Override it for a new loss variant.

        Args:
            chosen, rejected: `.sum`, `.average` (nats, nats per token) and `.length` (tokens) of each answer, (N,).
            margin: target margin of each pair, (N,): `gamma_beta_ratio` plus what the data adds.
        """
        objective = self.args.objective
        return objective.total(objective.losses(chosen, rejected, margin))

    @property
    def _logs_parts(self) -> bool:
        """Returns whether the loss is a mix, whose parts are logged one by one."""
        return len(self.args.objective.parts) > 1 and not self.own_loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch, scaled so that gradients add up to those of the mean over the global batch.

        Args:
            model: the wrapped model.
            inputs: the micro-batch, a :class:`~simpo_trainer.batches.batch.Batch`.
            return_outputs: also return the per-pair results.
            num_items_in_batch: pairs of the optimiser step over all processes; without it the micro-batch is averaged.
        """
        batch, training = cast(Batch, inputs), in_training(model)
        answers, router_logits = score_batch(model, batch)
        chosen, rejected = answers.select(batch["chosen"]), answers.select(batch["rejected"])
        weight = batch["pair_weight"].to(answers.sum.dtype)
        objective = self.args.objective
        margin = objective.gamma_beta_ratio + batch.get("margin", torch.zeros_like(weight))
        losses = self.pair_loss(chosen, rejected, margin=margin)

        if num_items_in_batch is None:
            scale = 1
            pairs, chosen_tokens = weight.sum(), (weight * chosen.length).sum()
        else:
            # Processes average their gradients; the loss of all of them together is one sum over one count.
            scale = self.accelerator.num_processes
            # Filled in where they are needed: a tensor made of numbers is copied there, and the copy waited for.
            pairs, chosen_tokens = (
                weight.new_full((), count) for count in (self._step_totals.pairs, self._step_totals.chosen_tokens)
            )
        loss = (losses * weight).sum() * scale / pairs
        if objective.sft_weight:
            likelihood = chosen.average if self.args.sft_reduction == "sequence" else chosen.sum
            count = chosen_tokens if self.args.sft_reduction == "token" else pairs
            sft = -(likelihood * weight).sum() * scale / count
            loss = loss + objective.sft_weight * sft
        sums = self._train_sums if training else self._eval_sums
        if self._balance and router_logits:
            # A mean of micro-batches, each as heavy as its pairs: filler alone adds nothing.
            balance = self._balance.loss(router_logits, batch) * weight.sum()
            loss = loss + self._balance.coefficient * balance * scale / pairs
            sums.add({"aux_loss": torch.stack([balance, weight.sum()])})

        sums.add(
            pair_metrics(
                chosen,
                rejected,
                logps=(objective.compared(chosen), objective.compared(rejected)),
                losses=losses,
                parts=objective.losses(chosen, rejected, margin) if self._logs_parts else {},
                margin=None if objective.target_margin is None else margin,
                weight=weight,
                beta=objective.reward_scale,
                sft_reduction=self.args.sft_reduction,
            )
        )
        if training:
            self.finite.note(loss, losses, batch, answers)
            if not self.is_in_train or steps_in_backward(self.args, self.is_deepspeed_enabled):
                self.finite.check(model, self.state.global_step)
        if not return_outputs:
            return loss
        return loss, {
            "logps": torch.stack([objective.compared(chosen), objective.compared(rejected)], -1).detach(),
            "lengths": torch.stack([chosen.length, rejected.length], -1),
        }

    @property
    def own_loss(self) -> str | None:  # type: ignore[override]
        """Returns the name of the trainer's class where its `pair_loss` is not the package's; else None."""
        package = __package__.split(".")[0]
        module = str(type(self).pair_loss.__module__)  # None for a class that was typed into a notebook
        return None if module.split(".")[0] == package else type(self).__name__

    @property
    def aux_loss_enabled(self) -> bool:
        """Returns whether the loss has the balance term of experts; trl's trainers have the same name for it."""
        return self._balance is not None

    @property
    def log_prob_unit(self) -> str:  # type: ignore[override]
        """Returns the unit of `logps/*`."""
        return self.args.objective.unit

    @property
    def target_margin(self) -> float | None:  # type: ignore[override]
        """Returns the margin that the loss aims at, in the unit of `logps/*`."""
        return self.args.objective.target_margin

    def method_settings(self) -> dict[str, Any]:
        """Returns the settings of loss, rows and model, for the record of the run."""
        return own_settings(self.args)

    def describe_loss(self) -> str:
        """Returns the loss with its formula and sources, a sentence in Markdown."""
        if self.own_loss:
            return f"Loss: that of the trainer class `{self.own_loss}`."
        return loss_in_words(self.args, margin_scale=self.args.margin_scale)

    # ---- Batches ----

    def _lay_out(self, own_collator: bool) -> None:
        """Choose the layout of the batches, and log it with the reason."""
        if own_collator:
            if self.args.batch_layout != "auto":
                raise SimPOError(
                    f"batch_layout is {self.args.batch_layout}, but the data_collator that was passed makes the "
                    "batches. Leave one of them out."
                )
            return
        model = cast(Any, self._model_to_train)
        flash = "flash" in str(model.config.get_text_config()._attn_implementation)
        # Flash attention computes in 16 bits alone; the others are compared in the precision of the weights.
        with self.accelerator.autocast() if flash else nullcontext():
            layout, reason = choose_layout(model, self.args.batch_layout, compiled=self.args.torch_compile)
        self.data_collator = cast(Any, PairCollator(self._token_ids.pad_id, layout))
        logger.info(f"Batch layout: {layout} ({reason}{saved_tokens(self.train_dataset, layout)}).")

    def _tokenized(self, dataset: Any, name: str, *, of_run: bool = False) -> Any:
        """Returns the token rows of a raw set, or of each in a mapping of sets; token rows pass through.

        Args:
            of_run: whether the set was given to the constructor, and so belongs into the record of the run.
        """
        if dataset is None:
            return None
        if isinstance(dataset, Mapping):
            return {key: self._tokenized(value, f"{name}_{key}", of_run=of_run) for key, value in dataset.items()}
        found = self._token_set(dataset, name, self._tokenizer, self.args, of_run=of_run)
        check_positions(self._model_to_train, found.longest, at_most=found.streamed)
        self._token_ids.check_set(found)
        if name == "train" and not self.own_loss and not self.args.objective.reads_margins:
            if "margin" in columns_of(found.rows):
                logger.warning(f"{name}: the margins of the data have no effect on the loss {self.args.loss_type}.")
        return found.rows

    def _training_pairs(self) -> PairBatchSampler | StreamedPairs:
        size = self.args.train_batch_size
        return training_pairs(self.train_dataset, self.args, self.args, size, self.accelerator, self._token_ids)

    def get_train_dataloader(self) -> DataLoader:
        """Returns the micro-batches of this process, in an order that depends on the seed and the epoch alone."""
        if self.train_dataset is None:
            raise SimPOError("Training needs a train_dataset.")
        self._train_pairs = self._training_pairs()
        return pair_loader(self.train_dataset, self._train_pairs, cast(Collator, self.data_collator), self.args)

    def rows_to_measure(self, count: int) -> Any:
        """Returns rows from all over the training set, or the first usable ones of a stream; None where it has none."""
        if not isinstance(self.train_dataset, IterableDataset):
            return spread_rows(self.train_dataset, count)
        return cast(StreamedPairs, self._train_pairs).first_rows(count)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """Fetch the micro-batches of one optimiser step and count their pairs over all processes."""
        self.finite.begin()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        local = sum((count_tokens(batch) for batch in batches), torch.zeros(3, dtype=torch.float64))
        counts = torch.cat([local, torch.tensor([float(self.stop_request.requested)], dtype=torch.float64)])
        counts = self.accelerator.reduce(counts.to(device, accumulation_dtype(device)), reduction="sum")
        self._step_totals = _StepTotals(*counts.tolist())
        self.state.num_input_tokens_seen += int(self._step_totals.tokens)
        return batches, self._step_totals.pairs

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Like `Trainer._prepare_inputs`, which would wait for the accelerator with each tensor that it moves there."""
        return super()._prepare_inputs(cast(dict[str, Any], on_device(cast(Batch, inputs), self.args.device)))

    # ---- Training ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Like :meth:`~simpo_trainer.train.run_trainer.RunTrainer.train`."""
        check_attention_trains(cast(Any, self._model_to_train))
        return super().train(*args, **kwargs)

    def window_sums(self) -> dict[str, Any]:
        """Returns this process's sums of metrics since the last log."""
        return self._train_sums.state()

    def add_window_sums(self, sums: Mapping[str, Any]) -> None:
        """Add sums that `window_sums` returned to the logging window."""
        device, dtype = self.args.device, accumulation_dtype(self.args.device)
        self._train_sums.add({name: torch.tensor(value, device=device, dtype=dtype) for name, value in sums.items()})

    @property
    def stop_requested(self) -> bool:
        """Returns whether to stop after this step; the same on every process."""
        if self.accelerator.num_processes > 1:
            return self._step_totals.stop_requests > 0
        return self.stop_request.requested

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the logging window to a training log, then log."""
        if "loss" in logs:
            logs |= self._train_sums.reduce(self.accelerator)
            if (pairs := self._train_pairs.pairs_after(self.state.global_step)) is not None:
                logs["num_pairs_seen"] = pairs
            logs["num_tokens_seen"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)


class _NewWindow(TrainerCallback):
    """Begins a logging window with the training: an aborted or finished run may have left one open."""

    def __init__(self, trainer: SimPOTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._train_sums = MetricSums()
