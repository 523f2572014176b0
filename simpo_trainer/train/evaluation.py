"""Evaluation of preference pairs: exact means over the pairs of a set, on any number of processes."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from ..batches.batch import Batch
from ..batches.loader import Collator, evaluation_pairs, pair_loader
from ..errors import SimPOError
from ..loss.losses import LOSSES
from ..loss.metrics import MetricSums, PairRecords
from ..loss.objective import Objective
from ..model.experts import BalanceTerm
from ..model.modes import evaluating
from ..record.methods import METHODS
from ..record.metric_table import AUX_LOSS, PAST_TARGET
from ..record.pair_scores import PairScores
from ..record.reader import PER_TOKEN
from .config import SimPOConfig
from .run_trainer import RunTrainer


def absent_metrics(objective: Objective, *, parts: bool, balanced: bool) -> set[str]:
    """Returns the metrics of the table that SimPO's evaluations by this objective lack.

    Args:
        objective: the loss.
        parts: whether the parts of the loss are measured one by one.
        balanced: whether there is a balance term of experts.
    """
    absent = set(METHODS["simpo"].unmeasured)
    if objective.target_margin is None:
        absent.add(PAST_TARGET)
    if not balanced:
        absent.add(AUX_LOSS)
    named = objective.parts if parts else ()
    return absent | {f"losses/{name}" for name in LOSSES} - {f"losses/{part.name}" for part in named}


class PairEvaluation(RunTrainer):
    """The part of a trainer that evaluates pairs.

    A subclass scores them in `compute_loss`, which adds its metrics to `_eval_sums`.
    """

    args: SimPOConfig
    evaluates_per_token = True
    _balance: BalanceTerm | None
    _eval_sums: MetricSums
    _eval_records: PairRecords
    _eval_scores: PairScores

    def _tokenized(self, dataset: Any, name: str, *, of_run: bool = False) -> Any:
        """Returns the token rows of a set, or of each set in a mapping; `of_run` puts them on the run's record."""
        raise NotImplementedError

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Returns the micro-batches of an evaluation set, given as such or by name, the longest pairs first."""
        if isinstance(eval_dataset, str):
            if not isinstance(self.eval_dataset, Mapping) or eval_dataset not in self.eval_dataset:
                raise SimPOError(f"There is no evaluation set called {eval_dataset!r}.")
            eval_dataset = self.eval_dataset[eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise SimPOError("Evaluation needs an eval_dataset: pass one to the trainer, or rows to evaluate().")
        pairs = evaluation_pairs(eval_dataset, self.args, self.accelerator)
        return pair_loader(eval_dataset, pairs, cast(Collator, self.data_collator), self.args)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Returns the micro-batches for `predict`."""
        return self.get_eval_dataloader(self._tokenized(test_dataset, "test"))

    def evaluate(
        self,
        eval_dataset: str | Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Like `Trainer.evaluate`; sets may be raw rows or streams, and several sets a mapping."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._tokenized(eval_dataset, metric_key_prefix)
        metrics = super().evaluate(cast(Any, eval_dataset), ignore_keys, metric_key_prefix)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = cast(Mapping[str, Any], self.eval_dataset)[rows]
        if not isinstance(rows, Mapping):  # a mapping comes here again, set by set
            self.held_out.note(metric_key_prefix, rows, self._eval_scores)
        return metrics

    def held_out_batches(self, rows: Any) -> DataLoader:
        """Returns the micro-batches of rows, laid out as in any evaluation."""
        return self.get_eval_dataloader(rows)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Like `Trainer.evaluation_loop`, with means over pairs from the trainer's own sums."""
        self._eval_sums = MetricSums()
        self._eval_records = PairRecords()
        # `gather_for_metrics` would cut rows off the last batch; the sampler repeats none.
        self.gather_function = self.accelerator.gather
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)

        metrics = self._eval_sums.reduce(self.accelerator)
        metrics["loss"] = metrics["preference_loss"] + self.args.objective.sft_weight * metrics["sft_loss"]
        if self._balance:
            metrics["loss"] += self._balance.coefficient * metrics["aux_loss"]
        logps, lengths, tokens = self._eval_records.gather(self.accelerator)
        averages = logps if self.args.objective.unit == PER_TOKEN else logps / lengths
        self._eval_scores = PairScores(averages, lengths)
        metrics |= {"num_pairs": len(logps), "num_tokens": int(tokens.sum())}
        if self.compute_metrics is not None:
            found = self.compute_metrics(EvalPrediction(predictions=logps, label_ids=lengths))
            metrics |= {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in found.items()}
        metrics = denumpify_detensorize(metrics)
        cast(dict, output.metrics).update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output._replace(predictions=logps, label_ids=lengths)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Score a micro-batch; the sums and a few numbers per pair are kept here, and nothing is handed on."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            _, outputs = self.compute_loss(model, inputs, return_outputs=True)
        self._eval_records.add(cast(Batch, inputs), outputs["logps"], outputs["lengths"])
        return None, None, None

    def measure(self, rows: Any) -> dict[str, float]:
        """Returns the metrics of the model as it is on token rows; every process must call it."""
        self._eval_sums = MetricSums()
        model = self.model_wrapped
        with evaluating(model), torch.no_grad():
            for inputs in self.get_eval_dataloader(rows):
                self.compute_loss(model, self._prepare_inputs(inputs))
        return self._eval_sums.reduce(self.accelerator)
