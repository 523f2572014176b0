"""Settles or refuses before training what saving would fail at, and writes the weights in any case."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers.trainer
from huggingface_hub import save_torch_state_dict
from peft import PeftModel
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging as transformers_logging

from ..errors import SimPOError
from ..log import get_logger
from ..record.full_disk import is_disk_full

logger = get_logger(__name__)


def check_saves(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, args: TrainingArguments
) -> None:
    """Save everything but the weights into a scratch folder, so that what cannot be saved is known before training.

    Args:
        model: to be trained; its smallest weight stands for all.
        tokenizer: to be saved with it.
        args: to be saved with it.

    Raises:
        SimPOError: something cannot be saved.
    """
    with tempfile.TemporaryDirectory() as folder, _no_progress_bar():
        if isinstance(model, PeftModel):
            for config in model.peft_config.values():
                _try("The configuration of the adapter", lambda config=config: config.save_pretrained(folder))
        else:
            _try("The model", lambda: model.save_pretrained(folder, state_dict=_smallest_weight(model)))
        if tokenizer is not None:
            _try("The tokenizer", lambda: tokenizer.save_pretrained(folder))
    _try("The arguments of the training", lambda: torch.save(args, io.BytesIO()))


def settle_generation(model: PreTrainedModel | PeftModel) -> None:
    """Put `do_sample` right, which some published models (Llama-2-chat) leave off beside values for sampling.

    Raises:
        SimPOError: the generation configuration has another fault, with which it cannot be saved.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config: GenerationConfig | None = getattr(base, "generation_config", None)
    if config is None or _fault(config) is None:
        return
    if not config.do_sample:
        config.do_sample = True
        if _fault(config) is None:
            logger.warning(
                "generation_config.json has values for sampling (temperature, top_p, ...) and do_sample: false, with "
                "which it cannot be saved. The trained model's will say do_sample: true."
            )
            return
        config.do_sample = False
    raise SimPOError(
        f"The model's generation_config.json cannot be saved with the trained model: {_fault(config)} Correct it, or "
        "remove the file."
    )


def _fault(config: GenerationConfig) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return _on_one_line(error)
    return None


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _smallest_weight(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    name, weight = min(model.named_parameters(), key=lambda named: named[1].numel())
    # Under ZeRO-3 and on a rank whose weights are elsewhere there is nothing to copy.
    return {name: torch.zeros(1) if weight.is_meta or not weight.numel() else weight.detach().clone()}


def _try(what: str, save: Any) -> None:
    try:
        save()
    except Exception as error:  # whatever it is, it would come at the end of the training too
        raise SimPOError(
            f"{what} cannot be saved, and so could not be after the training either: {type(error).__name__}: "
            f"{_on_one_line(error)}"
        ) from error


@contextmanager
def weights_rescued(model: Any, state_dict: dict[str, Any] | None, folder: str) -> Iterator[None]:
    """While entered, a failed save of a whole model still leaves its weights in the folder. PEFT writes those first.

    Args:
        model: the unwrapped model.
        state_dict: its gathered weights; None for the model's own.
        folder: where it is saved.

    Raises:
        SimPOError: saving failed, and the weights were written.
    """
    try:
        yield
    except Exception as error:
        # A full disk, or one that is gone: a second attempt would end like the first.
        if isinstance(error, OSError) or is_disk_full(error) or isinstance(model, PeftModel):
            raise
        save_torch_state_dict(model.state_dict() if state_dict is None else state_dict, folder)
        raise SimPOError(
            f"The model could not be saved as it should be ({type(error).__name__}: {_on_one_line(error)}), but its "
            f"weights are in {folder}. Put the configuration and the tokenizer of the starting model beside them."
        ) from error


@contextmanager
def without_card(model: Any) -> Iterator[None]:
    """While entered, saving an adapter neither writes README.md nor adds to one; other models write none anyway."""
    if not isinstance(model, PeftModel):
        yield
        return
    model.create_or_update_model_card = lambda output_dir: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.create_or_update_model_card


def without_frozen_head(model: Any, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the weights to save, for an adapter on head or embeddings without the frozen weight below it.

    peft would write that weight, a gigabyte at 8B, into each checkpoint, and other software refuses the name. It stays
    where the base has another number of rows than on disk: then no other copy of the new rows exists.

    Args:
        model: the unwrapped model.
        state_dict: its gathered weights; None for the model's own.
    """
    if not _adapts_head(model) or _was_resized(model):
        return state_dict
    weights = model.state_dict() if state_dict is None else state_dict
    return {name: weight for name, weight in weights.items() if ".base_layer." not in name}


def with_tied_as_one(model: Any, state_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns gathered weights in which one that has two names is one again: engines gather, and would save, it twice.

    Args:
        model: the unwrapped model.
        state_dict: its gathered weights; None for the model's own.
    """
    if not state_dict:
        return state_dict
    names: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in state_dict:
            state_dict[name] = state_dict[names.setdefault(id(weight), name)]
    return state_dict


def _adapts_head(model: Any) -> bool:
    if not isinstance(model, PeftModel):
        return False
    base: Any = model.get_base_model()
    return any(hasattr(layer, "base_layer") for layer in (base.get_input_embeddings(), base.get_output_embeddings()))


def _was_resized(model: PeftModel) -> bool:
    try:
        found = PretrainedConfig.get_config_dict(model.active_peft_config.base_model_name_or_path)[0]
    except (OSError, ValueError, TypeError):  # no such place, or none at all
        return True
    return found.get("vocab_size") != model.config.vocab_size


@contextmanager
def without_rotation() -> Iterator[None]:
    """While entered, transformers removes no older checkpoints: it would before the new one is sealed, and by time."""
    rotate = transformers.trainer.rotate_checkpoints
    transformers.trainer.rotate_checkpoints = lambda **arguments: None
    try:
        yield
    finally:
        transformers.trainer.rotate_checkpoints = rotate


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
