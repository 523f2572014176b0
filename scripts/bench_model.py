"""The model of a benchmark, random or from a folder, on the device and in the dtypes that a run would load it in."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

ATTENTIONS = ("sdpa", "flex_attention", "flash_attention_2", "eager")


def make_model(job: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The model of a job: all of it in float32 where it trains, or frozen under a LoRA adapter of rank 16."""
    device = "cuda" if job["cuda"] else "cpu"
    # Under an adapter the frozen weights lie in the dtype of the products, as one would load them.
    dtype = torch.bfloat16 if job["bf16"] and job["lora"] else torch.float32
    kwargs: dict[str, Any] = {"dtype": dtype, "attn_implementation": job["attention"]}
    if job["folder"]:
        model: Any = AutoModelForCausalLM.from_pretrained(job["folder"], **kwargs)
        model.to(device)
        for weight in model.parameters():
            weight.sum()  # a file's pages come into memory when they are first read: not during the steps
    else:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**job["shape"]), **kwargs)
    if not job["lora"]:
        return model
    if job["qlora"]:
        model = _in_4_bits(model, dtype, device)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapter)


def _in_4_bits(model: PreTrainedModel, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The same weights in 4 bits, quantised as a folder of them would be when it is loaded."""
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return LlamaForCausalLM.from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantised,
        attn_implementation=model.config._attn_implementation,
    )
