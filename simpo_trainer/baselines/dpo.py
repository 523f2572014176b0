"""DPO on SimPO's token rows: the only module that gives rows and a reference model to trl's `DPOTrainer`."""

from copy import copy
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import DPOTrainer

from ..errors import SimPOError
from ..log import get_logger
from ..model.adapters import without_dropout
from ..model.load import disable_dropout, load_model
from ..model.modes import in_training
from ..model.weights import folder_holds_adapter
from ..tokens.ids import TokenIds, count_embeddings
from ..tokens.rows import TOKEN_COLUMNS
from ..tokens.sets import spread_rows
from ..train.config import SimPOConfig
from .common import BaselineTrainer, refused_as_error
from .measure import mean_log_prob
from .rows import labelled_text, pair_rows
from .settings import DPOArguments

logger = get_logger(__name__)


class DPOBaseline(BaselineTrainer, DPOTrainer):
    """trl's `DPOTrainer` on the token rows that `SimPOTrainer` would train on.

    Args:
        model: folder or Hub name of the model to train; the reference is this model too. For an adapter's folder, the
            reference is the adapter before training.
        args: trl's settings.
        shared: the settings of rows and model.
        train_dataset: preference rows, ranked rows, or token rows of either kind.
        eval_dataset: the same, or None.
        processing_class: the tokenizer.
        peft_config: adds a new adapter to the model; the reference is then the model without it.

    Raises:
        SimPOError: settings, model or data do not fit the method or each other.
    """

    args: DPOArguments
    method = "dpo"

    def __init__(
        self,
        model: str,
        args: DPOArguments,
        shared: SimPOConfig,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
    ):
        self._prepare(args, shared)
        _check_noise(args, has_adapter=peft_config is not None or folder_holds_adapter(model))
        policy = load_model(model, shared, adapter_follows=peft_config is not None, bf16=bool(args.bf16))
        self.token_ids = TokenIds(processing_class, count_embeddings(policy))
        self.token_ids.check_pad_token(args.pad_token)
        pairs = self._pairs(train_dataset, "train", processing_class, policy)
        held_out = None if eval_dataset is None else self._pairs(eval_dataset, "eval", processing_class, policy)
        has_adapter = peft_config is not None or isinstance(policy, PeftModel)
        if peft_config is not None and shared.disable_dropout:
            peft_config = without_dropout(peft_config)
        set_seed(args.seed)  # trl makes a new adapter before it sets the seed itself
        refused_as_error(
            lambda: DPOTrainer.__init__(
                self,
                model=policy,
                ref_model=None if has_adapter or args.precompute_ref_log_probs else _reference(model, args, shared),
                args=args,
                train_dataset=pairs,
                eval_dataset=held_out,
                processing_class=processing_class,
                peft_config=peft_config,
            ),
            "DPOTrainer",
        )
        self._begin(has_new_adapter=peft_config is not None)

    def describe_loss(self) -> str:
        """Returns a text with the losses, beta, and the source of the reference's log-probabilities."""
        if self.args.precompute_ref_log_probs:
            reference = "log-probabilities computed before training"
        elif self.ref_model is not None:
            reference = "a frozen copy of the starting model"
        else:
            reference = "the model without its new adapter"
            if "ref" in getattr(self.model, "peft_config", {}):
                reference = "the adapter as it was"
        losses = [f"{weight:g} x {name}" for name, weight in zip(self.loss_types, self.loss_weights, strict=True)]
        shown = self.loss_types[0] if self.loss_weights == [1.0] else " + ".join(losses)
        return f"DPO: loss {shown}, beta {self.args.beta:g}. Reference: {reference}."

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Override trl's `log`: add the margin of log-probabilities, under the same name as for SimPO."""
        model: Any = self.model
        metrics = self._metrics["train" if in_training(model) else "eval"]
        sides = zip(metrics.get("logps/chosen", ()), metrics.get("logps/rejected", ()), strict=True)
        if margins := [chosen - rejected for chosen, rejected in sides]:
            metrics["logps/margins"] = margins
        super().log(logs, start_time)

    def rows_to_measure(self, count: int) -> Dataset:
        """Returns pairs at even distances over the training set."""
        return spread_rows(self.train_dataset, count)

    def measure(self, rows: Any) -> dict[str, float]:
        """Returns means over pairs of the answers' log-probabilities (sums over tokens); every process must call it."""
        chosen, rejected = (
            mean_log_prob(self, [labelled_text(row["prompt_ids"], row[side]) for row in rows])
            for side in ("chosen_ids", "rejected_ids")
        )
        return {"logps/chosen": chosen, "logps/rejected": rejected, "logps/margins": chosen - rejected}

    def _pairs(
        self, dataset: Any, name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel
    ) -> Dataset:
        rows = self._tokens(dataset, name, tokenizer, model).rows
        if "margin" in rows.column_names:
            logger.warning(f"{name}: the column 'margin' is not read by DPO, which has no target margin.")
        return pair_rows(rows)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Override trl's method, which would tokenize texts: return the token rows unchanged, after a check."""
        if missing := set(TOKEN_COLUMNS) - set(dataset.column_names):
            raise SimPOError(
                f"DPO needs token rows for an evaluation; the columns {', '.join(sorted(missing))} are missing."
            )
        self.token_ids.check_prepared(dataset, dataset_name)
        return dataset


def _check_noise(args: DPOArguments, *, has_adapter: bool) -> None:
    """Refuse NEFTune's noise beside an adapter: the reference is the same model then, and would have noise too."""
    if args.neftune_noise_alpha and has_adapter:
        raise SimPOError(
            f"neftune_noise_alpha is {args.neftune_noise_alpha} and an adapter is trained: the reference is the model "
            "without it, and its log-probabilities would have noise too. Remove neftune_noise_alpha, or set use_peft: "
            "false."
        )


def _reference(name: str, args: DPOArguments, shared: SimPOConfig) -> Any:
    """Load the starting model again as the reference, without dropout; trl freezes it."""
    given: Any = shared.model_init_kwargs or {}
    settings = copy(shared)
    settings.model_init_kwargs = {**given, **(args.ref_model_init_kwargs or {})}
    reference = load_model(name, settings, adapter_follows=False, bf16=bool(args.bf16))
    disable_dropout(reference)
    return reference
