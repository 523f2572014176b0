"""What a training benchmark runs on: shapes of models, pairs of token ids, and the matrix products they cannot avoid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from simpo_trainer.data.pair_tokenizer import TOKEN_COLUMNS
from simpo_trainer.data.tokenization import tokenize_preferences
from simpo_trainer.sampler import PairBatchSampler

# Hidden size, layers, attention heads, key-value heads, width of the MLP. The larger two are those of Llama 3.
MODELS = {"small": (256, 4, 8, 8, 1024), "1b": (2048, 16, 32, 8, 8192), "8b": (4096, 32, 32, 8, 14336)}
# Ids below stand for padding, beginning and end.
_FIRST_WORD = 3
# Pairs of which a benchmark's batches are made, so that batches are as alike in length as in training.
_POOL = 512


@dataclass(frozen=True)
class Profile:
    """Lengths of prompts, chosen and rejected answers in tokens: log-normal, cut at `max_length`.

    Args:
        medians: of prompt, chosen and rejected answer.
        spreads: standard deviations of the logarithms of prompts and of answers.
        max_length: longest prompt + answer.
    """

    medians: tuple[int, int, int]
    spreads: tuple[float, float]
    max_length: int


# Named after what they imitate; the medians are rounded, not measured on the sets themselves.
PROFILES = {
    "ultrafeedback": Profile((160, 290, 250), (0.9, 0.6), 2048),  # instructions and answers of chat models
    "hh": Profile((100, 45, 40), (0.8, 0.8), 1024),  # conversations with short last turns
    "long-prompt": Profile((1000, 60, 60), (0.4, 0.5), 2048),  # documents with questions
    "on-policy": Profile((150, 350, 350), (0.8, 0.35), 2048),  # several answers of one model
}
# Share of an answer's spread that the other answer to its prompt has too.
_COMMON = 0.5

Pair = dict[str, list[int]]


def model_shape(name: str, vocab: int, max_length: int, hidden: int | None, layers: int | None) -> dict[str, Any]:
    """Fields of a `LlamaConfig`; `hidden` and `layers` replace the preset's."""
    width, depth, heads, key_values, mlp = MODELS[name]
    return {
        "vocab_size": vocab,
        "hidden_size": hidden or width,
        "intermediate_size": mlp * (hidden or width) // width,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "max_position_embeddings": max_length,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def backbone_parameters(shape: dict[str, Any]) -> int:
    """Parameters outside embedding and head."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    outside = (model.get_input_embeddings(), model.get_output_embeddings())
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for m in outside for p in m.parameters())


def random_pairs(profile: Profile, vocab: int, seed: int, count: int = _POOL) -> list[Pair]:
    """Pairs of random token ids with the lengths of a profile; a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)

    def factors(spread: float, common: torch.Tensor) -> torch.Tensor:
        own = torch.randn(count, generator=generator)
        return (spread * (_COMMON**0.5 * common + (1 - _COMMON) ** 0.5 * own)).exp()

    prompt_spread, answer_spread = profile.spreads
    prompts = profile.medians[0] * factors(prompt_spread, torch.randn(count, generator=generator))
    common = torch.randn(count, generator=generator)
    answers = [median * factors(answer_spread, common) for median in profile.medians[1:]]

    def words(length: int) -> list[int]:
        return torch.randint(_FIRST_WORD, vocab, (length,), generator=generator).tolist()

    pairs = []
    for prompt, *both in zip(prompts.tolist(), *(lengths.tolist() for lengths in answers), strict=True):
        # Every row is at least one token long, and a prompt leaves room for an answer.
        prompt_length = max(1, min(round(prompt), profile.max_length * 7 // 8))
        chosen, rejected = (max(1, min(round(length), profile.max_length - prompt_length)) for length in both)
        lengths = (prompt_length, chosen, rejected)
        pairs.append({name: words(length) for name, length in zip(TOKEN_COLUMNS, lengths, strict=True)})
    return pairs


def real_pairs(path: str, tokenizer: str | None, max_length: int) -> list[Pair]:
    """Pairs of a JSON or Parquet file: rows of token ids, or `{prompt, chosen, rejected}` and a tokenizer's name."""
    kind = "parquet" if path.endswith(".parquet") else "json"
    data = load_dataset(kind, data_files=path, split="train")
    data = data.shuffle(seed=0).select(range(min(len(data), _POOL)))
    if not set(data.column_names) >= set(TOKEN_COLUMNS):
        if tokenizer is None:
            raise SystemExit(f"{path} holds no token ids ({', '.join(TOKEN_COLUMNS)}). Name a tokenizer: --tokenizer.")
        data, _ = tokenize_preferences(
            data,
            AutoTokenizer.from_pretrained(tokenizer),
            max_length=max_length,
            max_prompt_length=max_length * 7 // 8,
            overlong="truncate",
        )
    return [{name: list(row[name]) for name in TOKEN_COLUMNS} for row in data]


def choose_batches(pairs: Sequence[Pair], size: int, steps: int, seed: int) -> list[Pair]:
    """The pairs of `steps` batches, evenly from the shortest to the longest that the trainer makes of all pairs."""
    sampler = PairBatchSampler(len(pairs), batch_size=size, seed=seed, lengths=_lengths(pairs), drop_last=True)
    batches = [[pairs[draw.pair] for draw in batch] for batch in sampler]
    if len(batches) < steps:
        raise SystemExit(f"{len(pairs)} pairs make {len(batches)} batches of {size}; {steps} steps need more.")
    batches.sort(key=lambda batch: sum(_lengths(batch)))
    return [pair for step in range(steps) for pair in batches[(2 * step + 1) * len(batches) // (2 * steps)]]


def epochs_in_order(pairs: Sequence[Pair], size: int, epochs: int, seed: int) -> list[Pair]:
    """The pairs in the order in which `SimPOTrainer` takes them, all epochs behind each other."""
    sampler = PairBatchSampler(len(pairs), batch_size=size, seed=seed, lengths=_lengths(pairs))
    ordered = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        ordered += [pairs[draw.pair] for batch in sampler for draw in batch]
    return ordered


def _lengths(pairs: Sequence[Pair]) -> list[int]:
    return [sum(len(pair[name]) for name in TOKEN_COLUMNS) for pair in pairs]


def medians(pairs: Sequence[Pair]) -> dict[str, int]:
    """Median length of prompts, chosen and rejected answers."""
    return {
        name.removesuffix("_ids"): int(torch.tensor([len(pair[name]) for pair in pairs]).median())
        for name in TOKEN_COLUMNS
    }


def needed_flops(pairs: Sequence[Pair], shape: dict[str, Any], backbone: int, frozen: bool = False) -> float:
    """Floating-point operations of the matrix products that one forward and backward over these pairs needs.

    Each prompt goes through the backbone once, each answer once without its last token, which predicts nothing; each
    answer token is scored once. A token costs two operations per weight forward, two for the gradient of the input and
    two for that of the weight, which frozen weights (adapters) do not need. Attention counts, per layer, the keys that a
    token may see, itself included: two products forward and four backward. Left out are recomputation, the products
    of adapters, and all that is no matrix product.

    Args:
        backbone: parameters outside embedding and head.
        frozen: the weights get no gradients.
    """
    per_weight = 4 if frozen else 6
    total = 0.0
    for pair in pairs:
        prompt, *answers = (len(pair[name]) for name in TOKEN_COLUMNS)
        tokens = prompt + sum(length - 1 for length in answers)
        seen = prompt * (prompt + 1) // 2
        seen += sum((length - 1) * prompt + (length - 1) * length // 2 for length in answers)
        head = shape["hidden_size"] * shape["vocab_size"]
        total += per_weight * (backbone * tokens + head * sum(answers))
        total += 12 * shape["hidden_size"] * shape["num_hidden_layers"] * seen
    return total
