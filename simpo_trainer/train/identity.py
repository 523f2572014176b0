"""The identity of a run: what must be equal for a checkpoint to be one of the same training.

It stands in the seal of each checkpoint, and beside it, as circumstances, what may change: versions of libraries and
all that does not change the trained weights, also the batch per device and the number of processes, of which the
global batch is in the identity.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from operator import itemgetter
from typing import Any

import torch
import xxhash
from transformers import TrainingArguments

from ..environment import library_versions
from ..knobs import harmless_knobs
from ..record.fingerprints import rows_fingerprint, sha256_of, tokenizer_fingerprint
from ..record.privacy import public_settings
from .config import SimPOConfig

# Fields of `TrainingArguments` that do not change the trained weights, by what they are about. A field that is not here
# counts as one that does, also one of a later version.
HARMLESS = {
    "places and names": {"output_dir", "run_name", "project", "do_train", "do_eval", "do_predict", "label_names"},
    "logging": {
        *("logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "report_to", "disable_tqdm", "skip_memory_metrics", "debug"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
    },
    "evaluation": {
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
        *("per_device_eval_batch_size", "prediction_loss_only", "batch_eval_metrics", "eval_do_concat_batches"),
        *("eval_use_gather_object", "include_for_metrics", "bf16_full_eval", "fp16_full_eval"),
    },
    "checkpoints": {
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "resume_from_checkpoint"),
    },
    "the Hub": {
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
        *("hub_revision",),
    },
    "the parts of a batch, of which the global batch is compared": {
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    },
    "speed and memory, at equal results": {
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
        *("activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_in_order", "dataloader_multiprocessing_context"),
        *("torch_empty_cache_steps", "use_cache", "length_column_name", "remove_unused_columns"),
        *("average_tokens_across_devices", "use_cpu", "local_rank"),
    },
    "processes": {
        *("ddp_backend", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_timeout"),
        *("ddp_static_graph", "fsdp", "fsdp_config", "deepspeed", "accelerator_config"),
    },
}
# What is different in every process or at every start, or says nothing about the run.
_NOT_TOLD = {
    *("places and names", "processes"),
    *("resume_from_checkpoint", "local_rank", "allow_changes", "model_init_kwargs", "disable_tqdm"),
}
# What chooses the best checkpoint changes the model at the end, where that is loaded.
_OF_BEST = {"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"}


def changing_fields(args: TrainingArguments) -> list[str]:
    """Returns the settings of a run that change its trained weights, also those that nobody has classed."""
    harmless = harmless_knobs(SimPOConfig).union(*HARMLESS.values())
    if args.load_best_model_at_end:
        harmless -= _OF_BEST
    return [each.name for each in fields(args) if each.name not in harmless]


def run_identity(trainer: Any, base_model: str | None = None) -> dict[str, Any]:
    """Returns the identity of the run that a trainer is about to make.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.
        base_model: the fingerprint of its model before it has moved; None where it has not moved yet.

    Returns:
        By name: each setting that changes the result, and fingerprints of model, adapter, tokenizer and data.
    """
    args, facts = trainer.args, trainer.facts()
    settings = {name: _plain(getattr(args, name)) for name in changing_fields(args)}
    # For a trainer of trl, the settings of rows and model are not among its arguments.
    harmless = harmless_knobs(SimPOConfig)
    settings |= {name: value for name, value in facts.settings.items() if name not in harmless}
    template = trainer.processing_class.chat_template
    return _as_json(
        {
            **public_settings(settings),
            "method": facts.method,
            "the loss of the trainer's class": facts.own_loss,
            "pairs of a step": facts.batch["global"],
            "adapter": facts.model["adapter"],
            "the type of the trained weights": facts.model["trained_dtype"],
            "the type of the model": facts.model["dtype"],
            "the quantisation": _quantization(trainer.model),
            "the base model": base_model or model_fingerprint(trainer.model),
            "the tokenizer": tokenizer_fingerprint(trainer.processing_class),
            "the chat template": sha256_of(template) if template else None,
            "the training pairs": rows_fingerprint(trainer.train_dataset),
        }
    )


def run_circumstances(trainer: Any) -> dict[str, Any]:
    """Returns what may change while a run goes on, and is told: harmless settings, processes, versions, by name."""
    args = trainer.args
    told = harmless_knobs(SimPOConfig).union(*(names for about, names in HARMLESS.items() if about not in _NOT_TOLD))
    told -= {*_NOT_TOLD, *changing_fields(args)}
    return _as_json(
        {
            **public_settings({each.name: getattr(args, each.name) for each in fields(args) if each.name in told}),
            "processes": trainer.accelerator.num_processes,
            **library_versions(),
        }
    )


def _as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy as it is when it was written and read: tuples are lists then."""
    return json.loads(json.dumps(found, default=str))


def _quantization(model: Any) -> Any:
    found: Any = getattr(model.config, "quantization_config", None)
    return found.to_dict() if hasattr(found, "to_dict") else found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


# Bytes of each weight that are looked at: a model that was trained further differs in all of them.
_BYTES = 4096


def model_fingerprint(model: torch.nn.Module) -> str:
    """Returns a hash of names, shapes and first numbers of the weights; without a new adapter's, which are random."""
    found = xxhash.xxh3_128()
    for name, weight in sorted(_named_without_adapter(model), key=itemgetter(0)):
        if "lora_" in name or ".modules_to_save." in name:
            continue
        found.update(f"{name} {tuple(getattr(weight, 'ds_shape', weight.shape))}".encode())
        if weight.numel() and not weight.is_meta and not hasattr(weight, "quant_state"):
            first = weight.detach().reshape(-1)[: _BYTES // 4]
            found.update(first.float().cpu().numpy().tobytes())
    return found.hexdigest()


def _named_without_adapter(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the weights by the names that they have without an adapter."""
    for name, weight in model.named_parameters():
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), weight
