"""What a training benchmark runs on: shapes of models, rows of token ids, and the matrix products they cannot avoid."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from simpo_trainer.batches.order import PairBatchSampler
from simpo_trainer.tokens.rows import TOKEN_COLUMNS, row_answers, row_pairs
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences

# Hidden size, layers, attention heads, key-value heads, width of the MLP. The larger two are those of Llama 3.
MODELS = {"small": (256, 4, 8, 8, 1024), "1b": (2048, 16, 32, 8, 8192), "8b": (4096, 32, 32, 8, 14336)}
# Of these, embedding and head are one weight.
_TIED = {"1b"}
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

# A token row: a pair, or a prompt with ranked answers.
Row = dict[str, Any]


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
        "tie_word_embeddings": name in _TIED,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def folder_shape(folder: str) -> dict[str, Any]:
    """Fields of the `LlamaConfig` of a model in a folder.

    Raises:
        SystemExit: it is no Llama, of whose products alone the floor is known.
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, LlamaConfig):
        raise SystemExit(f"{folder} holds a {config.model_type}; --model takes the folder of a Llama.")
    return config.to_dict()


def backbone_parameters(shape: dict[str, Any]) -> int:
    """Parameters outside embedding and head."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    return sum(p.numel() for p in model.base_model.parameters()) - model.model.embed_tokens.weight.numel()


def random_pairs(profile: Profile, vocab: int, seed: int, count: int = _POOL) -> list[Row]:
    """Pairs of random token ids with the lengths of a profile; a function of the arguments alone."""
    rows = _random_rows(profile, profile.medians[1:], vocab, seed, count)
    return [dict(zip(TOKEN_COLUMNS, (prompt, *answers), strict=True)) for prompt, answers in rows]


def random_ranked(profile: Profile, vocab: int, seed: int, answers: int, count: int = _POOL) -> list[Row]:
    """Prompts with so many answers, the profile's chosen and rejected ones in turn, and every two answers as a pair."""
    medians = [profile.medians[1 + place % 2] for place in range(answers)]
    chosen, rejected = map(list, zip(*combinations(range(answers), 2), strict=True))
    return [
        {"prompt_ids": prompt, "response_ids": responses, "chosen": chosen, "rejected": rejected}
        for prompt, responses in _random_rows(profile, medians, vocab, seed, count)
    ]


def two_by_two(rows: Sequence[Row]) -> list[Row]:
    """The pairs of rows as rows of their own; those of a row one after the other."""
    return [
        dict(zip(TOKEN_COLUMNS, (row["prompt_ids"], row_answers(row)[chosen], row_answers(row)[rejected]), strict=True))
        for row in rows
        for chosen, rejected in row_pairs(row)
    ]


def _random_rows(
    profile: Profile, medians: Sequence[int], vocab: int, seed: int, count: int
) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts and answers of these median lengths."""
    generator = torch.Generator().manual_seed(seed)

    def factors(spread: float, common: torch.Tensor) -> torch.Tensor:
        own = torch.randn(count, generator=generator)
        return (spread * (_COMMON**0.5 * common + (1 - _COMMON) ** 0.5 * own)).exp()

    prompt_spread, answer_spread = profile.spreads
    prompts = profile.medians[0] * factors(prompt_spread, torch.randn(count, generator=generator))
    common = torch.randn(count, generator=generator)
    answers = [median * factors(answer_spread, common) for median in medians]

    def words(length: int) -> list[int]:
        return torch.randint(_FIRST_WORD, vocab, (length,), generator=generator).tolist()

    rows = []
    for prompt, *own in zip(prompts.tolist(), *(lengths.tolist() for lengths in answers), strict=True):
        # Every row is at least one token long, and a prompt leaves room for an answer.
        prompt_length = max(1, min(round(prompt), profile.max_length * 7 // 8))
        lengths = [max(1, min(round(length), profile.max_length - prompt_length)) for length in own]
        rows.append((words(prompt_length), [words(length) for length in lengths]))
    return rows


def real_pairs(path: str, tokenizer: str | None, max_length: int) -> list[Row]:
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
            RowSettings(max_length=max_length, max_prompt_length=max_length * 7 // 8),
        )
    if not set(data.column_names) >= set(TOKEN_COLUMNS):
        raise SystemExit(
            f"{path} holds ranked answers; this benchmark reads pairs. Leave out --data and use --ranked K."
        )
    return [{name: list(row[name]) for name in TOKEN_COLUMNS} for row in data]


def choose_batches(rows: Sequence[Row], size: int, steps: int, seed: int) -> list[Row]:
    """The rows of `steps` batches, evenly from the shortest to the longest that the trainer makes of all rows."""
    sampler = PairBatchSampler(len(rows), batch_size=size, seed=seed, lengths=_lengths(rows), drop_last=True)
    batches = [[rows[draw.row] for draw in batch] for batch in sampler]
    if len(batches) < steps:
        raise SystemExit(f"{len(rows)} rows make {len(batches)} batches of {size}; {steps} steps need more.")
    batches.sort(key=lambda batch: sum(_lengths(batch)))
    return [row for step in range(steps) for row in batches[(2 * step + 1) * len(batches) // (2 * steps)]]


def epochs_in_order(rows: Sequence[Row], size: int, epochs: int, seed: int) -> list[Row]:
    """The rows in the order in which `SimPOTrainer` takes them, all epochs behind each other."""
    sampler = PairBatchSampler(len(rows), batch_size=size, seed=seed, lengths=_lengths(rows))
    ordered = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        ordered += [rows[draw.row] for batch in sampler for draw in batch]
    return ordered


def unique_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all prompts and answers, a prompt counted once."""
    return sum(_lengths(rows))


def _lengths(rows: Sequence[Row]) -> list[int]:
    return [len(row["prompt_ids"]) + sum(map(len, row_answers(row))) for row in rows]


def medians(rows: Sequence[Row]) -> dict[str, int]:
    """Median length of prompts, chosen and rejected answers; of ranked answers, of those at even and odd places."""
    lengths = {"prompt": [len(row["prompt_ids"]) for row in rows]}
    for place, name in enumerate(("chosen", "rejected")):
        lengths[name] = [len(ids) for row in rows for ids in row_answers(row)[place::2]]
    return {name: int(torch.tensor(found).median()) for name, found in lengths.items()}


def needed_flops(rows: Sequence[Row], shape: dict[str, Any], backbone: int, frozen: bool = False) -> float:
    """Floating-point operations of the matrix products that one forward and backward over these rows needs.

    Each prompt goes through the backbone once, each answer once without its last token, which predicts nothing; each
    answer token is scored once. A token costs two operations per weight forward, two for the gradient of the input and
    two for that of the weight, which frozen weights (adapters) do not need. Attention counts, per layer, the keys that
    a token may see, itself included: two products forward and four backward. Left out are recomputation, the products
    of adapters, and all that is no matrix product.

    Args:
        backbone: parameters outside embedding and head.
        frozen: the weights get no gradients.
    """
    per_weight = 4 if frozen else 6
    heads = shape["num_attention_heads"]
    queries = heads * (shape.get("head_dim") or shape["hidden_size"] // heads)
    total = 0.0
    for row in rows:
        prompt, answers = len(row["prompt_ids"]), [len(ids) for ids in row_answers(row)]
        tokens = prompt + sum(length - 1 for length in answers)
        seen = prompt * (prompt + 1) // 2
        seen += sum((length - 1) * prompt + (length - 1) * length // 2 for length in answers)
        head = shape["hidden_size"] * shape["vocab_size"]
        total += per_weight * (backbone * tokens + head * sum(answers))
        total += 12 * queries * shape["num_hidden_layers"] * seen
    return total
