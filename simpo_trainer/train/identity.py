"""The identity of a run: what must be equal for a checkpoint to be one of the same training.

It stands in the seal of each checkpoint. Versions of libraries, paths, and all that does not change the trained weights
are left out; so are the batch per device and the number of processes, of which the global batch stands here.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

import torch
import xxhash
from transformers import TrainingArguments

from ..record.fingerprints import rows_fingerprint, sha256_of, tokenizer_fingerprint
from ..record.privacy import public_settings

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
# Settings of this package that do not change the trained weights.
_OWN_HARMLESS = {"batch_layout", "dataset_num_proc", "global_batch_size", "model_init_kwargs", "rescue_dir"}
# What chooses the best checkpoint changes the model at the end, where that is loaded.
_OF_BEST = {"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"}


def changing_fields(args: TrainingArguments) -> list[str]:
    """Returns the settings of a run that change its trained weights, also those that nobody has classed."""
    harmless = _OWN_HARMLESS.union(*HARMLESS.values())
    if args.load_best_model_at_end:
        harmless -= _OF_BEST
    return [each.name for each in fields(args) if each.name not in harmless]


def run_identity(trainer: Any) -> dict[str, Any]:
    """Returns the identity of the run that a trainer is about to make, before its model has moved.

    Args:
        trainer: a :class:`~simpo_trainer.train.run_trainer.RunTrainer`.

    Returns:
        By name: each setting that changes the result, and fingerprints of model, adapter, tokenizer and data.
    """
    args, facts = trainer.args, trainer.facts()
    settings = {name: _plain(getattr(args, name)) for name in changing_fields(args)}
    # For a trainer of trl, the settings of rows and model are not among its arguments.
    settings |= {name: value for name, value in facts.settings.items() if name not in _OWN_HARMLESS}
    template = trainer.processing_class.chat_template
    return json.loads(
        json.dumps(
            {
                **public_settings(settings),
                "method": facts.method,
                "the loss of the trainer's class": facts.own_loss,
                "pairs of a step": facts.batch["global"],
                "adapter": facts.model["adapter"],
                "the base model": _model_fingerprint(trainer.model),
                "the tokenizer": tokenizer_fingerprint(trainer.processing_class),
                "the chat template": sha256_of(template) if template else None,
                "the training pairs": rows_fingerprint(trainer.train_dataset),
            },
            default=str,
        )
    )


def differences(sealed: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Returns a text for each part of an identity that differs; one that either side lacks does not.

    Args:
        sealed: the identity in a seal, maybe of another version of this package.
        own: the identity of this run.
    """
    return [_difference(name, sealed[name], own[name]) for name in own if name in sealed and sealed[name] != own[name]]


def _difference(name: str, before: Any, now: Any) -> str:
    if _is_hash(before) or _is_hash(now):
        return f"{name} {'are' if name.endswith('pairs') else 'is'} not the same"
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 32 and all(letter in "0123456789abcdef" for letter in value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# Bytes of each weight that are looked at: a model that was trained further differs in all of them.
_BYTES = 4096


def _model_fingerprint(model: torch.nn.Module) -> str:
    """Returns a hash of names, shapes and first numbers of the weights; without a new adapter's, which are random."""
    found = xxhash.xxh3_128()
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name or ".modules_to_save." in name:
            continue
        found.update(f"{name} {tuple(getattr(weight, 'ds_shape', weight.shape))}".encode())
        if weight.numel() and not weight.is_meta and not hasattr(weight, "quant_state"):
            first = weight.detach().reshape(-1)[: _BYTES // 4]
            found.update(first.float().cpu().numpy().tobytes())
    return found.hexdigest()
