"""The facts of a run, read off its trainer. Nothing else reads them there."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import TrainingArguments

from ..environment import hardware, library_versions
from ..model.load import weight_size
from ..model.segments import SEGMENT_ATTENTION
from ..record.facts import RunFacts
from ..record.fingerprints import row_hashes, rows_fingerprint, sha256_of, tokenizer_fingerprint
from ..record.privacy import hub_name, public_label, public_settings
from ..tokens.rows import is_ranked
from ..tokens.sets import TokenSet, columns_of, count_pairs
from .config import SimPOConfig


def run_facts(trainer: Any) -> RunFacts:
    """The facts of a run that its trainer, a :class:`~simpo_trainer.train.run_trainer.RunTrainer`, knows."""
    args = trainer.args
    return RunFacts(
        versions=library_versions(),
        hardware={**hardware(), "processes": trainer.accelerator.num_processes},
        seeds={"seed": args.seed, "data_seed": args.data_seed, "full_determinism": args.full_determinism},
        recipe=trainer.recipe_facts,
        method=trainer.method,
        settings=trainer.method_settings(),
        own_loss=trainer.own_loss,
        loss=trainer.describe_loss(),
        log_prob_unit=trainer.log_prob_unit,
        target_margin=trainer.target_margin,
        training=_training(args),
        model=_model(trainer),
        tokenizer=_tokenizer(trainer.processing_class),
        sets=_sets(trainer),
        batch=_batch(trainer),
    )


def own_settings(args: SimPOConfig) -> dict[str, Any]:
    """The settings that `TrainingArguments` lacks, without the keyword arguments of the model's loader."""
    common = {each.name for each in fields(TrainingArguments)} | {"model_init_kwargs"}
    return {each.name: getattr(args, each.name) for each in fields(args) if each.name not in common}


def _training(args: TrainingArguments) -> dict[str, Any]:
    return {
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warmup_steps": args.warmup_steps,
        "optim": str(getattr(args.optim, "value", args.optim)),
        "num_train_epochs": args.num_train_epochs,
    }


def _model(trainer: Any) -> dict[str, Any]:
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
        "adapter": _adapter(model) if isinstance(model, PeftModel) else None,
    }


def _adapter(model: PeftModel) -> dict[str, Any]:
    adapter = model.active_peft_config.to_dict()
    left_out = ("base_model_name_or_path", "inference_mode", "auto_mapping")
    return public_settings({key: value for key, value in adapter.items() if value and key not in left_out})


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    template = tokenizer.chat_template
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_of(template) if template else None,
    }


def _sets(trainer: Any) -> dict[str, Any]:
    sets: dict[str, Any] = {"train": trainer.train_dataset}
    if isinstance(trainer.eval_dataset, Mapping):
        sets |= {f"eval_{name}": dataset for name, dataset in trainer.eval_dataset.items()}
    else:
        sets["eval"] = trainer.eval_dataset
    sets = {name: dataset for name, dataset in sets.items() if dataset is not None}
    hashes = {name: row_hashes(dataset) for name, dataset in sets.items()}
    return {
        name: {
            "rows": len(dataset) if hasattr(dataset, "__len__") else None,
            "pairs": count_pairs(dataset),
            "ranked": is_ranked(columns_of(dataset)),
            "repeated": _repeated(hashes[name]),
            "trained_on": _among(hashes[name], hashes.get("train")) if name != "train" else None,
            "tokens_sha256": rows_fingerprint(dataset),
            "pairs_sha256": _pairs_fingerprint(trainer.token_sets.get(name)),
            "tokenization": _tokenization(trainer.token_sets.get(name)),
        }
        for name, dataset in sets.items()
    }


def _repeated(hashes: np.ndarray | None) -> int | None:
    """Returns how many rows repeat an earlier one."""
    return None if hashes is None else len(hashes) - len(np.unique(hashes))


def _among(hashes: np.ndarray | None, trained: np.ndarray | None) -> int | None:
    """Returns how many rows of a set are training rows too."""
    return None if hashes is None or trained is None else int(np.isin(hashes, trained).sum())


def _pairs_fingerprint(found: TokenSet | None) -> str | None:
    """Returns the hash of a set's pairs before a method makes its own rows of them; None for rows without pairs."""
    return None if found is None else rows_fingerprint(found.rows)


def _tokenization(found: TokenSet | None) -> dict[str, Any] | None:
    """Returns the counts of a set's tokenization without the details of single rows, which may be private."""
    if found is None or found.report is None:
        return None
    report = found.report
    dropped = {reason: rows.count for reason, rows in report.dropped.items()}
    second = report.second_renderings.count if report.second_renderings else 0
    return public_settings({**asdict(report), "dropped": dropped, "second_renderings": second})


def _batch(trainer: Any) -> dict[str, Any]:
    micro, processes = trainer.args.train_batch_size, trainer.accelerator.num_processes
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
