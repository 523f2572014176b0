"""`ModelSettings`: how the model is loaded, and how batches are laid out for it."""

from dataclasses import dataclass
from typing import Any, Literal

from ..knobs import knob


@dataclass
class ModelSettings:
    """Settings for loading and running the model."""

    batch_layout: Literal["auto", "padded", "shared_prefix", "packed"] = knob(
        "auto",
        "How prompts and answers are laid out in rows: 'shared_prefix' runs a prompt once for its answers, 'packed' "
        "puts all prompts of a micro-batch in one row, 'padded' gives each answer a row. All give the same loss and "
        "gradient; 'auto' takes the fastest that is exact for the model.",
        changes_result=False,
    )
    disable_dropout: bool = knob(
        True,
        "Set every dropout of the model (and of LoRA) to 0, so that a loss is a function of weights and data. Where "
        "layers read it from the configuration, the saved configuration says 0 too.",
    )
    model_init_kwargs: dict[str, Any] | str | None = knob(
        None,
        "Keyword arguments of `AutoModelForCausalLM.from_pretrained`, used when the model is given by name.",
        changes_result=False,  # the model that they load is compared itself
    )
