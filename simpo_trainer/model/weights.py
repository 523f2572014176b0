"""Loading a model or an adapter by name. Weights that are not in its folder are an error: they would be random ones."""

import os
import re
from collections.abc import Collection, Iterable
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import SimPOError
from ..log import get_logger
from .load_once import build_without_weights
from .renamed import without_rename_warning

logger = get_logger(__name__)

# Where the name of a layer ends and what an adapter puts around it begins.
WRAPPED = r"\.(?:base_layer|modules_to_save|original_module|token_adapter)\b"
# In the names of classes that give scores or classes instead of tokens.
_OTHER_HEADS = ("Classification", "QuestionAnswering", "Reward")


def load_causal_lm(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model, and check that its folder holds every weight.

    A process that gets its weights from another one when they are split has none until then.

    Args:
        name: folder or Hub name.
        kwargs: passed on to `from_pretrained`.

    Raises:
        SimPOError: weights are missing, or the folder holds a model with another head.
    """
    if (empty := build_without_weights(name, **kwargs)) is not None:
        return empty
    loader: Any = AutoModelForCausalLM
    model, found = loader.from_pretrained(name, output_loading_info=True, **kwargs)
    classes = [each for each in model.config.architectures or [] if any(other in each for other in _OTHER_HEADS)]
    if classes:
        raise SimPOError(
            f"{name!r} holds a {classes[0]}, which gives scores instead of tokens; its head would be replaced by a "
            "random one. Set model_name_or_path to the language model that it was made from."
        )
    unexpected = found["unexpected_keys"]
    _refuse_missing(name, found["missing_keys"], unexpected, len(model.state_dict()))
    if unexpected:
        logger.warning(f"{name!r} holds {_listed(unexpected)} that {type(model).__name__} does not use.")
    if kwargs.get("gguf_file"):
        _forget_quantization(model)
    return model


def _forget_quantization(model: PreTrainedModel) -> None:
    """Make a model that was read from a GGUF file an ordinary one: its weights are no longer quantised."""
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    vars(model)["is_quantized"] = False


def load_adapter(folder: str, **kwargs: Any) -> PeftModel:
    """Load a saved adapter, to train on, with its base.

    Args:
        folder: made by `save_pretrained` of a PEFT model.
        kwargs: passed on to `from_pretrained` of the base.

    Raises:
        SimPOError: weights of the adapter or of its base are missing.
    """
    config = PeftConfig.from_pretrained(folder)
    if not config.base_model_name_or_path:
        raise SimPOError(
            f"The adapter {folder!r} does not say which model it was made for. Write base_model_name_or_path into its "
            "adapter_config.json."
        )
    base = load_causal_lm(os.path.expanduser(config.base_model_name_or_path), **{**kwargs, "revision": config.revision})
    weights = load_peft_weights(folder, device="cpu")
    _make_room(base, weights)
    with without_rename_warning():
        model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    needed = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    unexpected = weights.keys() - needed
    unexpected -= of_embeddings(unexpected, model)
    _refuse_missing(folder, [key for key in needed if key not in weights], unexpected, len(needed))
    if unexpected:
        logger.warning(f"The adapter {folder!r} holds {_listed(unexpected)} for which its base has no place.")
    return model


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Put the weights that were saved in a folder into a model that is there already.

    transformers reads the names in the file as those of the model, which they are not where experts are saved one by
    one: a mixture of experts would keep the weights it has.

    Args:
        model: whole, on this process, not wrapped.
        folder: written by `save_pretrained` of such a model.

    Raises:
        SimPOError: weights are missing or have another shape.
    """
    try:
        if _holds_all(saved_shapes(folder).keys(), model):
            for file in _files(folder):
                model.load_state_dict(load_file(file), strict=False)
            return
        whole: Any = type(model)
        dtype = reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})
        saved, found = whole.from_pretrained(
            folder, config=deepcopy(model.config), dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, TypeError, SafetensorError) as error:  # the first says that shapes differ
        raise SimPOError(f"The weights in {folder} do not fit the model that is to go on training: {error}") from error
    _refuse_missing(folder, found["missing_keys"], found["unexpected_keys"], len(model.state_dict()))
    model.load_state_dict(saved.state_dict())


def saved_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in the safetensors files of a folder, by name; nothing but their headers is read.

    Raises:
        SimPOError: a file is broken.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise SimPOError(f"{file} cannot be read: {error}. Use another checkpoint.") from error
    return shapes


def of_embeddings(names: Iterable[str], model: PreTrainedModel | PeftModel) -> set[str]:
    """The names in an adapter's file of the embedding and the head, which peft may write beside the adapter."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    prefix = "" if isinstance(model, PeftModel) else "base_model.model."
    # An adapter wraps the layer, and what the model then calls its embedding may lie inside.
    places = tuple(
        f"{prefix}{re.split(WRAPPED, name)[0]}."
        for name, module in model.named_modules()
        if any(module is end for end in ends)
    )
    return {name for name in names if name.startswith(places)} if places else set()


def _files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("*model*.safetensors"))


def _holds_all(names: Collection[str], model: PreTrainedModel) -> bool:
    """Returns whether every weight of a model is among these names; a tied weight needs only one of its names."""
    held = model.state_dict()
    places = {held[name].data_ptr() for name in names if name in held}
    return all(name in names or weight.data_ptr() in places for name, weight in held.items())


def _make_room(base: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give the base as many embeddings as the adapter brings, where tokens were added before it was trained."""
    whole = [name for name in of_embeddings(weights, base) if name.endswith("weight") and "lora_" not in name]
    rows = max((len(weights[name]) for name in whole), default=0)
    if rows > cast(nn.Embedding, base.get_input_embeddings()).num_embeddings:
        # Rows like those that are there cannot be made of weights that are empty; the adapter brings them anyway.
        base.resize_token_embeddings(rows, mean_resizing=not base.get_input_embeddings().weight.is_meta)


def _refuse_missing(name: str, missing: Collection[str], unexpected: Collection[str], total: int) -> None:
    if not missing:
        return
    instead = f" It holds {_listed(unexpected)} instead: are they named otherwise?" if unexpected else ""
    raise SimPOError(
        f"{len(missing)} of the {total} weights that the model needs are not in {name!r}: {_listed(missing)}. Training "
        f"would start from random ones.{instead} Save the model again with save_pretrained, whole and in one process, "
        "or download it again."
    )


def _listed(keys: Collection[str]) -> str:
    names = sorted(keys)
    return f"{len(names)} weight{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"


def folder_holds_adapter(name: str) -> bool:
    """Returns whether a folder holds an adapter instead of a whole model."""
    return (Path(name) / "adapter_config.json").is_file()
