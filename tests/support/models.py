"""Tiny models and token rows for tests, made in code with random weights."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

VOCAB_SIZE = 97
PAD, BOS, EOS = 0, 1, 2

SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}

_GPT2 = {
    **{key: SMALL[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}

# What differs between architectures and matters for scoring: tying, bias, scale and soft-capping of the head, learned
# or rotary positions, sliding windows.
ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SMALL),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=4),
    "qwen3-tied": lambda: Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "qwen3-untied": lambda: Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(**_GPT2),
    "gemma2": lambda: Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0, sliding_window=4),
    "cohere": lambda: CohereConfig(**SMALL, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**SMALL, logits_scaling=4.0),
    "hyperclovax": lambda: HyperCLOVAXConfig(**SMALL, logits_scaling=0.25),
    "phi": lambda: PhiConfig(**SMALL),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "qwen2-window": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "gemma3": lambda: Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: Phi3Config(**SMALL, sliding_window=4),
    "olmo2": lambda: Olmo2Config(**SMALL),
    "cohere2": lambda: Cohere2Config(**SMALL, sliding_window=4),
    "gpt-neox": lambda: GPTNeoXConfig(**{key: SMALL[key] for key in SMALL if key != "num_key_value_heads"}),
    "mixtral": lambda: MixtralConfig(**SMALL, sliding_window=4, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "smollm3": lambda: SmolLM3Config(**SMALL),
    "stablelm": lambda: StableLmConfig(**SMALL),
    "starcoder2": lambda: Starcoder2Config(**SMALL, sliding_window=4),
}


def tiny_model(config: PretrainedConfig | None = None, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random causal language model in float32, by default a Llama; weights large enough that answers differ."""
    config = config or LlamaConfig(**{**SMALL, **overrides})
    # The fast way to run experts has no float64, in which the reference computes.
    config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float()
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        head.weight.mul_(4)
        if head.bias is not None:
            head.bias.normal_()  # made as zeros, which would hide that it is left out
    return model


def tiny_architecture(name: str) -> PreTrainedModel:
    """A tiny model of one of `ARCHITECTURES`."""
    return tiny_model(ARCHITECTURES[name]())


class HalvedLlama(LlamaForCausalLM):
    """Scales its logits by a number that no configuration tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


def halved_llama() -> HalvedLlama:
    """The default tiny model, but for its logits."""
    model = HalvedLlama(LlamaConfig(**SMALL))
    model.load_state_dict(tiny_model().state_dict())
    return model


def as_exact_as_can_be(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, or in float32 where attention is eager: its float64 mask overflows in a float32 softmax."""
    return model if model.config._attn_implementation == "eager" else model.double()


def random_pairs(count: int, seed: int = 0, *, vocab_size: int = VOCAB_SIZE) -> list[dict[str, Any]]:
    """Token rows of uneven lengths: prompts of 1 to 9 tokens with BOS, answers of 1 to 8 tokens with EOS."""
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(longest + 1, (), generator=generator))
        return torch.randint(EOS + 1, vocab_size, (length,), generator=generator).tolist()

    return [
        {"prompt_ids": [BOS, *ids(8)], "chosen_ids": [*ids(7), EOS], "rejected_ids": [*ids(7), EOS]}
        for _ in range(count)
    ]


def random_ranked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Token rows of prompts with two to five ranked answers, the best first, and every two of them as a pair."""
    pairs = random_pairs(5 * count, seed)
    rows = []
    for number in range(count):
        own = pairs[5 * number : 5 * number + 2 + number % 4]
        both = list(combinations(range(len(own)), 2))
        rows.append(
            {
                "prompt_ids": own[0]["prompt_ids"],
                "response_ids": [pair["chosen_ids"] for pair in own],
                "chosen": [chosen for chosen, _ in both],
                "rejected": [rejected for _, rejected in both],
            }
        )
    return rows


def two_by_two(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs of ranked token rows as rows of their own."""
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": row["response_ids"][chosen],
            "rejected_ids": row["response_ids"][rejected],
            **({"margin": row["margin"][number]} if "margin" in row else {}),
        }
        for row in rows
        for number, (chosen, rejected) in enumerate(zip(row["chosen"], row["rejected"], strict=True))
    ]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words w3, w4, ... are the ids of the tiny models' vocabulary; it puts BOS in front."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(EOS + 1, VOCAB_SIZE))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def as_text(pair: dict[str, Any]) -> dict[str, str]:
    """A token row as the text that :func:`word_tokenizer` reads; BOS and EOS are left to the tokenization."""

    def words(ids: list[int]) -> str:
        return " ".join(f"w{i}" for i in ids if i not in (BOS, EOS))

    return {
        "prompt": words(pair["prompt_ids"]),
        "chosen": " " + words(pair["chosen_ids"]),
        "rejected": " " + words(pair["rejected_ids"]),
    }
