"""`run_manifest.json`: what a run was, so that its numbers can be explained and had again.

The file is published with the model, so it holds names instead of paths, and neither users, hosts nor secrets.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.drops import DropReport
from ..data.load import describe_sources
from ..environment import hardware, library_versions
from ..model.load import weight_size
from ..model.segments import SEGMENT_ATTENTION
from ..tokens.rows import is_ranked
from ..tokens.sets import columns_of, pair_counts
from ..train.config import SimPOConfig
from .fingerprints import rows_fingerprint, sha256_of, tokenizer_fingerprint
from .peak_memory import forget_peak, peak_memory
from .privacy import hub_name, public_label, public_settings

if TYPE_CHECKING:
    from ..recipe.load import Recipe
    from ..train.run_trainer import RunTrainer

FILE_NAME = "run_manifest.json"


class ManifestCallback(TrainerCallback):
    """Writes the manifest when training starts, so that a killed run has one, and completes it as results come."""

    def __init__(self, trainer: "RunTrainer"):
        self.trainer = trainer
        self.manifest: dict[str, Any] = {}
        self._earlier: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        forget_peak(self.trainer.accelerator.device)
        if not self.trainer.is_world_process_zero():
            return
        self._earlier = self._first_part() if state.global_step else {}
        begun = {"status": "running", "started": _now(), "finished": None, "resumed_from_step": state.global_step}
        self.manifest = {
            "manifest_version": 1,
            **begun,
            "peak_memory": None,
            **describe_run(self.trainer),
            "measured_rows": None,
            "start": None,
            "end": None,
        }
        self._write()

    def record_start(self, rows: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Add what the untrained model was measured to do on some rows.

        Args:
            rows: which rows these are.
            metrics: None where the run goes on from a checkpoint: its first part has measured, if on the same rows.
        """
        if not self.manifest:
            return
        measured = {"measured_rows": rows, "log_prob_unit": self.manifest["log_prob_unit"]}
        if metrics is None and all(self._earlier.get(name) == value for name, value in measured.items()):
            metrics = self._earlier.get("start")
        self._write(measured_rows=rows, start=metrics)

    def record_end(self, metrics: dict[str, float]) -> None:
        """Add what the trained model was measured to do on the rows of the start, and of which step it is."""
        if self.manifest:
            self._write(end=metrics)

    def _first_part(self) -> dict[str, Any]:
        """The manifest of the run that is gone on with; empty unless its checkpoint lies beside it."""
        folder, checkpoint = Path(str(self.trainer.args.output_dir)), self.trainer.resumed_from
        # One that was set aside under another name is of an earlier run in the folder.
        if checkpoint is None or checkpoint.resolve().parent != folder.resolve() or checkpoint.name[0] == "_":
            return {}
        try:
            found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or a torn one
            return {}
        return found if isinstance(found, dict) else {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        peak = peak_memory(self.trainer.accelerator)
        if self.manifest:
            status = "interrupted" if self.trainer.interrupted else "finished"
            self._write(status=status, finished=_now(), peak_memory=peak)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.manifest:
            self._write()

    def _write(self, **news: Any) -> None:
        state = self.trainer.state
        results = {"steps": state.global_step, "metrics": final_metrics(state.log_history)}
        self.manifest = {**self.manifest, **news, "results": results}
        file = Path(str(self.trainer.args.output_dir)) / FILE_NAME
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
        scratch.replace(file)  # whoever reads it meanwhile finds the old or the new one whole


def describe_run(trainer: "RunTrainer") -> dict[str, Any]:
    """What is known of a run beside its results: versions, hardware, settings, model, data and batch."""
    recipe = trainer.recipe
    return {
        "versions": library_versions(),
        "hardware": {**hardware(), "processes": trainer.accelerator.num_processes},
        "seeds": {
            "seed": trainer.args.seed,
            "data_seed": trainer.args.data_seed,
            "full_determinism": trainer.args.full_determinism,
        },
        "recipe": _describe_recipe(recipe) if recipe else None,
        "method": trainer.method,
        "own_loss": own_loss(trainer),
        trainer.method: public_settings(trainer.method_settings()),
        "log_prob_unit": _log_prob_unit(trainer.args),
        "model": _describe_model(trainer),
        "tokenizer": _describe_tokenizer(trainer.processing_class),
        "data": {
            "sources": public_settings(describe_sources(recipe.data)) if recipe else [],
            "sets": _describe_sets(trainer),
        },
        "batch": _describe_batch(trainer),
    }


def final_metrics(log_history: list[dict[str, float]]) -> dict[str, float]:
    """The last value of everything that was logged."""
    found: dict[str, float] = {}
    for entry in log_history:
        found |= {name: value for name, value in entry.items() if name not in ("epoch", "step")}
    return found


def _log_prob_unit(args: TrainingArguments) -> str | None:
    """What `logps/*` are measured in; None where a trainer of trl logs them."""
    return args.objective.unit if isinstance(args, SimPOConfig) else None


def _describe_recipe(recipe: "Recipe") -> dict[str, Any]:
    return {
        "name": recipe.path.name,
        "settings": public_settings(recipe.settings),
        "origins": public_settings({key: os.path.basename(origin) for key, origin in recipe.origins.items()}),
    }


def own_loss(trainer: Any) -> str | None:
    """The name of a trainer's class, where its `pair_loss` is not one of the package."""
    package = __package__.split(".")[0]
    pair_loss = getattr(type(trainer), "pair_loss", None)
    return None if pair_loss is None or str(pair_loss.__module__).split(".")[0] == package else type(trainer).__name__


def _describe_model(trainer: "RunTrainer") -> dict[str, Any]:
    model: Any = trainer.model
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = list(model.named_parameters())
    trained = [parameter for _, parameter in parameters if parameter.requires_grad]
    precision = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else None
    return {
        "name": hub_name(base.config._name_or_path),
        "label": public_label(base.config._name_or_path),
        "commit": getattr(base.config, "_commit_hash", None),
        "class": type(base).__name__,
        "parameters": sum(weight_size(parameter) for _, parameter in parameters),
        "trained_parameters": sum(weight_size(parameter) for parameter in trained),
        "dtype": str(base.dtype).removeprefix("torch."),
        "trained_dtype": ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained})),
        "autocast": precision,
        # Piece by piece or not, it is SDPA.
        "attention": str(getattr(base.config, "_attn_implementation", "")).replace(SEGMENT_ATTENTION, "sdpa") or None,
        "adapter": _describe_adapter(model) if isinstance(model, PeftModel) else None,
    }


def _describe_adapter(model: PeftModel) -> dict[str, Any]:
    adapter = model.active_peft_config.to_dict()
    left_out = ("base_model_name_or_path", "inference_mode", "auto_mapping")
    return public_settings({key: value for key, value in adapter.items() if value and key not in left_out})


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    template = tokenizer.chat_template
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_of(template) if template else None,
    }


def _describe_sets(trainer: "RunTrainer") -> dict[str, Any]:
    sets: dict[str, Any] = {"train": trainer.train_dataset}
    if isinstance(trainer.eval_dataset, Mapping):
        sets |= {f"eval_{name}": dataset for name, dataset in trainer.eval_dataset.items()}
    else:
        sets["eval"] = trainer.eval_dataset
    return {
        name: {
            "rows": len(dataset) if hasattr(dataset, "__len__") else None,
            "pairs": _count_pairs(dataset),
            "ranked": is_ranked(columns_of(dataset)),
            "tokens_sha256": rows_fingerprint(dataset),
            "tokenization": _describe_drops(trainer.drop_reports.get(name)),
        }
        for name, dataset in sets.items()
        if dataset is not None
    }


def _count_pairs(dataset: Any) -> int | None:
    """Pairs of a set, which are more than its rows where answers are ranked; None for a stream."""
    if not hasattr(dataset, "__len__"):
        return None
    counts = pair_counts(dataset)
    return len(dataset) if counts is None else sum(counts)


def _describe_drops(report: DropReport | None) -> dict[str, Any] | None:
    """The report in numbers: what was seen in single rows may be private."""
    if report is None:
        return None
    dropped = {reason: rows.count for reason, rows in report.dropped.items()}
    return public_settings({**asdict(report), "dropped": dropped})


def _describe_batch(trainer: "RunTrainer") -> dict[str, Any]:
    # Not the argument: `auto_find_batch_size` may have made it smaller.
    micro, processes = trainer._train_batch_size, trainer.accelerator.num_processes
    accumulation = trainer.args.gradient_accumulation_steps or 1
    return {
        "global": micro * processes * accumulation,
        "per_device": micro,
        "processes": processes,
        "accumulation": accumulation,
        "layout": getattr(trainer.data_collator, "layout", None),
        "optimiser_steps": trainer.state.max_steps,
        "epochs": trainer.state.num_train_epochs,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
