"""The model that a run trains: loading by name, adapters, dropout, and the rule on weight dtypes."""

import math
import os
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import SimPOError
from .adapters import add_adapter, check_adapter, describe_adapter, drop_dropout, without_dropout
from .load_errors import not_loaded
from .network import settle_network
from .quantized import keep_as_stored
from .settings import ModelSettings
from .weights import folder_holds_adapter, load_adapter, load_causal_lm

_COARSE = (torch.bfloat16, torch.float16)
_STAND_STILL = (
    "at SimPO's learning rates steps are too small for 16-bit weights: they would stand still. Load the model with "
    "dtype=float32 (bf16: true then means autocast over float32 weights), train an adapter, or use DeepSpeed, which "
    "keeps its own float32 copy."
)


def load_model(name: str, settings: ModelSettings, *, adapter_follows: bool, bf16: bool) -> PreTrainedModel | PeftModel:
    """Load a causal language model by folder or Hub name, or a saved adapter with its base by folder.

    Weights that train are loaded as float32 whatever the checkpoint's own dtype: at SimPO's learning rates bfloat16
    weights stand still. A base that stays frozen under an adapter is loaded as bfloat16 under bf16 autocast.

    Args:
        name: folder or Hub name.
        settings: its `model_init_kwargs` are passed on; a `dtype` there wins.
        adapter_follows: whether a new adapter will be put on the model, which freezes it.
        bf16: whether the model runs under bf16 autocast.

    Raises:
        SimPOError: nothing can be loaded under that name, or weights are missing.
    """
    kwargs = init_kwargs(settings)
    check_model_name(name, kwargs.get("gguf_file"))
    settle_network([name])
    is_adapter = folder_holds_adapter(name)
    frozen = adapter_follows or is_adapter
    kwargs.setdefault("dtype", torch.bfloat16 if frozen and bf16 else torch.float32)
    try:
        model = load_adapter(name, **kwargs) if is_adapter else load_causal_lm(name, **kwargs)
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(f"The model {name!r}", error) from error
    keep_as_stored(model)
    return model


def init_kwargs(settings: ModelSettings) -> dict[str, Any]:
    """Returns the keyword arguments of `from_pretrained`; code of a repository runs only where they say so."""
    given: dict[str, Any] = dict(settings.model_init_kwargs or {})  # type: ignore[arg-type]
    return {"trust_remote_code": False, **given}  # unset, transformers would ask on the terminal


def load_tokenizer(name: str, settings: ModelSettings, *, instead: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, from the revision that `model_init_kwargs` name for the model.

    Args:
        name: folder or Hub name of the model.
        instead: folder or Hub name of a tokenizer to use in place of the model's own.

    Raises:
        SimPOError: nothing can be loaded under that name.
    """
    if not (name or instead):
        raise SimPOError("The model does not say where it was loaded from. Pass its tokenizer as processing_class.")
    settle_network([instead or name])
    given = init_kwargs(settings)
    shared = ["token", "cache_dir", "local_files_only", "trust_remote_code"]
    shared += [] if instead else ["revision", "subfolder", "gguf_file"]
    try:
        return AutoTokenizer.from_pretrained(
            os.path.expanduser(instead or name), **{key: given[key] for key in shared if key in given}
        )
    except Exception as error:  # a torn file can make any of them
        raise not_loaded(f"The tokenizer of {instead or name!r}", error) from error


def _of_quickstart(name: str) -> str:
    """Returns the command that makes the quickstart's model, if that is the one that is missing."""
    if Path(name) != Path("runs/quickstart/model"):
        return ""
    return " The quickstart makes its own: run `make quickstart` in a clone of the repository."


def check_model_name(name: str, gguf_file: str | None = None) -> None:
    """Refuse a model folder that is not there or holds no model, before anything is loaded.

    Args:
        name: folder or Hub name.
        gguf_file: the file in it to load instead of weights and configuration of transformers.

    Raises:
        SimPOError: the name looks like a local path and no model can be loaded from it.
    """
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    if not path.is_dir():
        # "runs/first" has the form of a Hub name, but a folder "runs" here tells what was meant.
        looks_local = looks_local or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
        if looks_local or path.exists():
            raise SimPOError(
                f"The model folder {name!r} does not exist or is not a folder. model_name_or_path must be a folder "
                f"made by save_pretrained (with config.json) or a name on the Hugging Face Hub such as Qwen/Qwen3-0.6B."
                f"{_of_quickstart(name)}"
            )
        return
    if gguf_file:
        if not (path / gguf_file).is_file():
            raise SimPOError(f"The folder {name!r} holds no {gguf_file}, which model_init_kwargs name as gguf_file.")
        return
    if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise SimPOError(
            f"The folder {name!r} holds no config.json, so it is not a model. model_name_or_path must be a folder made "
            "by save_pretrained. For a checkpoint of a run, name the checkpoint-N folder inside it; for a GGUF file, "
            "set model_init_kwargs: {gguf_file: NAME}."
        )


def prepare_model(
    model: PreTrainedModel | PeftModel, settings: ModelSettings, peft_config: PeftConfig | None, *, seed: int
) -> PreTrainedModel | PeftModel:
    """Put an adapter on the model where asked, and switch dropout off.

    Args:
        model: the model as it was loaded.
        settings: its `disable_dropout` is read.
        peft_config: the adapter to put on the model.
        seed: of the adapter's first weights.

    Raises:
        SimPOError: an adapter is asked for on a model that has one, the adapter is not one that can be trained and
            merged as asked, or an adapted model has nothing to train.
    """
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise SimPOError(
                "peft_config is given and the model already has an adapter. To go on training that adapter, leave "
                "peft_config out; for a new one, merge the old first with model = model.merge_and_unload() and save "
                "the result, which is the new adapter's base."
            )
        set_seed(seed)  # the trainer's own call comes too late for the weights of a new adapter
        model = add_adapter(model, without_dropout(peft_config) if settings.disable_dropout else peft_config)
        for parameter in model.parameters():
            # Copies made for `modules_to_save` keep the base's dtype, but they train.
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SimPOError(
            "The model has no trainable parameter. If its adapter was loaded for inference, load it with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    if isinstance(model, PeftModel):
        check_adapter(model, is_new=peft_config is not None)
    if settings.disable_dropout:
        disable_dropout(model)
    return model


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: modules for it, and rates that layers or configurations keep, an adapter's too."""
    for module in model.modules():
        if "Dropout" in type(module).__name__ and hasattr(module, "p"):  # torch's, and those of adapters
            cast(Any, module).p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)
                elif name in ("rank_dropout", "module_dropout") and isinstance(value, dict):
                    value.update(dict.fromkeys(value, 0.0))  # a rate for each adapter on the layer
    drop_dropout(model)


def check_trainable_dtypes(model: nn.Module) -> None:
    """Refuse to train 16-bit weights where nothing keeps a float32 copy of them.

    At a learning rate of 5e-7 a bfloat16 weight is too coarse to move: after 100 AdamW steps about 1 % of them have
    changed, of float32 weights all.

    Raises:
        SimPOError: names the first 16-bit weight that would train.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    coarse = [(name, p.dtype) for name, p in trainable if p.dtype in _COARSE]
    if coarse:
        name, dtype = coarse[0]
        found = f"{len(coarse)} of {len(trainable)} trainable weights are {_dtype_name(dtype)} (first: {name})"
        raise SimPOError(f"{found}; {_STAND_STILL}")


def check_dtype(name: str, settings: ModelSettings, *, adapter_follows: bool) -> None:
    """Refuse settings that load 16-bit weights to train, like :func:`check_trainable_dtypes` but before a model is.

    Args:
        name: folder or Hub name of the model.
        settings: read is the `dtype` in its `model_init_kwargs`.
        adapter_follows: whether a new adapter will be put on the model, which freezes it.

    Raises:
        SimPOError: the whole model would train in 16 bits.
    """
    dtype = _dtype_name(init_kwargs(settings).get("dtype"))
    if getattr(torch, dtype, None) in _COARSE and not (adapter_follows or folder_holds_adapter(name)):
        raise SimPOError(f"dtype is {dtype}, and the whole model trains; {_STAND_STILL}")


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def check_positions(model: PreTrainedModel | PeftModel, longest: int, *, at_most: bool = False) -> None:
    """Refuse rows longer than the positions that the model has.

    Args:
        model: the model; read is its configuration's `max_position_embeddings`.
        longest: tokens of the longest prompt + answer.
        at_most: whether that is only what a stream's rows are cut to.

    Raises:
        SimPOError: the longest row does not fit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        found = "In a stream a prompt + answer may have" if at_most else "The longest prompt + answer has"
        raise SimPOError(
            f"{found} {longest} tokens, but the model has positions for {limit}. "
            f"Set max_length: {limit} (and max_prompt_length below it)."
        )


def describe(model: nn.Module) -> str:
    """One line on size and trainable share, for the start of the log."""
    total = sum(weight_size(p) for p in model.parameters())
    trainable = sum(weight_size(p) for p in model.parameters() if p.requires_grad)
    return f"{total:,} parameters, {trainable:,} of them train ({trainable / total:.2%}){describe_adapter(model)}"


def weight_size(parameter: torch.Tensor) -> int:
    """The number of elements of a weight, of which ZeRO-3 leaves an empty tensor, and 4 bits put two into a byte."""
    if shape := getattr(getattr(parameter, "quant_state", None), "shape", None):
        return math.prod(shape)
    return getattr(parameter, "ds_numel", None) or parameter.numel()
