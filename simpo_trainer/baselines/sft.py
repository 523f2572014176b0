"""Supervised fine-tuning by trl's `SFTTrainer`, on the chosen answers of SimPO's rows or on whole conversations."""

from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTTrainer

from ..model.adapters import without_dropout
from ..model.load import check_positions, load_model
from ..tokens.ids import TokenIds, count_embeddings
from ..tokens.sets import columns_of, spread_rows
from ..train.config import SimPOConfig
from .common import BaselineTrainer, refused_as_error
from .measure import mean_log_prob
from .rows import answer_rows, conversation_rows, longest_row
from .settings import SFTArguments


class SFTBaseline(BaselineTrainer, SFTTrainer):
    """trl's `SFTTrainer` on prompts with their chosen answers, or on rows of `messages`.

    Args:
        model: folder or Hub name of the model to train, or of an adapter's folder.
        args: trl's settings.
        shared: the settings of rows and model.
        train_dataset: preference rows, ranked rows, token rows of either kind, or rows of `messages`.
        eval_dataset: the same, or None.
        processing_class: the tokenizer.
        peft_config: adds a new adapter to the model.

    Raises:
        SimPOError: settings, model or data do not fit the method or each other.
    """

    args: SFTArguments
    method = "sft"
    unit = "rows"

    def __init__(
        self,
        model: str,
        args: SFTArguments,
        shared: SimPOConfig,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
    ):
        self._prepare(args, shared)
        loaded = load_model(model, shared, adapter_follows=peft_config is not None, bf16=bool(args.bf16))
        self.token_ids = TokenIds(processing_class, count_embeddings(loaded))
        self.token_ids.check_pad_token(args.pad_token)
        self._on_conversations = "messages" in columns_of(train_dataset)
        if self._on_conversations or args.packing:
            args.max_length = shared.max_length  # token rows are already cut to length
        rows = self._rows(train_dataset, "train", processing_class, loaded, args)
        held_out = None if eval_dataset is None else self._rows(eval_dataset, "eval", processing_class, loaded, args)
        if peft_config is not None and shared.disable_dropout:
            peft_config = without_dropout(peft_config)
        set_seed(args.seed)  # trl makes a new adapter before it sets the seed itself
        refused_as_error(
            lambda: SFTTrainer.__init__(
                self,
                model=loaded,
                args=args,
                train_dataset=rows,
                eval_dataset=held_out,
                processing_class=processing_class,
                peft_config=peft_config,
            ),
            "SFTTrainer",
        )
        check_positions(loaded, longest_row(self.train_dataset))
        self._begin(has_new_adapter=peft_config is not None)

    def describe_loss(self) -> str:
        """Returns a text with the loss and the tokens that it averages over."""
        if not self._on_conversations:
            scored = "chosen answers" if self.args.completion_only_loss is not False else "prompts and chosen answers"
        else:
            scored = "assistant messages" if self.args.assistant_only_loss else "whole conversations"
        return f"SFT: loss {self.args.loss_type}, a mean over the tokens of {scored}."

    def rows_to_measure(self, count: int) -> Dataset | None:
        """Returns rows at even distances over the training set; None if rows do not have one answer each."""
        if self._on_conversations or self.args.packing or self.args.completion_only_loss is False:
            return None
        return spread_rows(self.train_dataset, count)

    def measure(self, rows: Any) -> dict[str, float]:
        """Returns the mean log-probability of chosen answers (sums over tokens); every process must call it."""
        return {"logps/chosen": mean_log_prob(self, list(rows))}

    def _rows(
        self,
        dataset: Any,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | PeftModel,
        args: SFTArguments,
    ) -> Dataset:
        if "messages" in columns_of(dataset):
            return conversation_rows(dataset, name, tokenizer, self.shared)
        tokens = self._tokens(dataset, name, tokenizer, model).rows
        return answer_rows(tokens, with_prompt=args.completion_only_loss is False)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Override trl's method, which tokenizes rows of `messages`: check that all ids have embeddings."""
        rows = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if isinstance(rows, Dataset):
            moved = packing or args.shuffle_dataset or len(rows) < len(dataset)
            self.token_ids.check_prepared(
                rows, f"{dataset_name}, as trl packed or moved its rows" if moved else dataset_name
            )
        return rows
