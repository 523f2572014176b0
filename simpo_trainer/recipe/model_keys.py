"""`ModelKeys`: the keys of a recipe for the model and its adapter, those of trl's `ModelConfig`, each explained."""

from dataclasses import dataclass
from typing import Literal

from trl import ModelConfig

from ..knobs import knob


@dataclass
class ModelKeys(ModelConfig):
    """trl's settings of the model, with two other defaults: weights keep no fixed dtype, all linear layers adapt."""

    model_name_or_path: str | None = knob(
        None,
        "Model to start from: a folder, or a name on the Hugging Face Hub. A folder with an adapter goes on with it.",
    )
    model_revision: str = knob("main", "Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = knob(
        None,
        "Type in which the weights are loaded. Unset means float32 for weights that train, and bfloat16 (with bf16) "
        "for a model that is frozen under an adapter.",
    )
    attn_implementation: str | None = knob(
        None,
        "Attention of the model: sdpa, eager, flash_attention_2, flash_attention_3, flex_attention, or the name of a "
        "kernel of the Hub; unset means the choice of transformers, mostly sdpa.",
    )
    use_peft: bool = knob(
        False, "Train a LoRA adapter on the frozen model instead of all its weights: a fraction of the memory."
    )
    lora_r: int = knob(16, "Rank of the adapter: the more, the more it can learn, and the more weights it has.")
    lora_alpha: int = knob(32, "The adapter's change of a layer is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = knob(0.05, "Dropout before the adapter; it is 0 under disable_dropout, the default.")
    lora_target_modules: list[str] | None = knob(
        None,
        "Layers that get an adapter: all-linear (unset means that: every linear layer but the head), names of modules "
        "in a list, or a regular expression as a text.",
    )
    lora_target_parameters: list[str] | None = knob(
        None, "Weights that are no module of their own, such as fused experts, and get an adapter too."
    )
    lora_modules_to_save: list[str] | None = knob(
        None, "Modules of which a whole copy trains and is saved beside the adapter, such as lm_head."
    )
    use_rslora: bool = knob(
        False, "Multiply the adapter's change by lora_alpha / sqrt(lora_r) instead, for high ranks."
    )
    use_dora: bool = knob(
        False, "DoRA: learn the length of each weight row apart from its direction. Slower than LoRA."
    )
    load_in_8bit: bool = knob(False, "Load the frozen model in 8 bits; needs use_peft and bitsandbytes.")
    load_in_4bit: bool = knob(
        False, "Load the frozen model in 4 bits (with use_peft: QLoRA); needs bitsandbytes. About 0.5 bytes a weight."
    )
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = knob("nf4", "Kind of the 4-bit numbers: nf4 or fp4.")
    use_bnb_nested_quant: bool = knob(False, "Quantise the scales of the 4-bit numbers too: 0.4 bits a weight less.")
    bnb_4bit_quant_storage: str | None = knob(
        None,
        "Type in which 4-bit numbers are stored. FSDP splits no uint8: there the default is that of other weights.",
    )
