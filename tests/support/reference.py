"""SimPO written slowly from the paper (arXiv 2405.14734), for tests to compare with.

One answer at a time, without padding, token by token; whole logits; float64. The formulas are those of the paper's
section 2, spelt with exponentials where the package uses stable forms.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """What the loss depends on; names and defaults as in `SimPOConfig`."""

    beta: float = 2.0
    gamma_beta_ratio: float = 0.5
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    average_log_prob: bool = True
    sft_weight: float = 0.0
    sft_reduction: str = "sequence"


@dataclass(frozen=True)
class Answer:
    """Scores of one answer: the log-probability and the mean logit of each of its tokens, (|y|,)."""

    logps: Tensor
    mean_logits: Tensor

    @property
    def sum(self) -> Tensor:
        return self.logps.sum()

    @property
    def average(self) -> Tensor:
        return self.logps.sum() / len(self.logps)


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A float64 model with the weights of `model` and nothing else of it."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.double().eval()


def score_answer(model: nn.Module, prompt_ids: list[int], answer_ids: list[int]) -> Answer:
    """log p(y_t | x, y_<t) of each token of an answer, from the logits of the model's plain forward."""
    # An adapter of virtual tokens puts their logits in front.
    logits = model(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0].double()
    logits = logits[-len(prompt_ids + answer_ids) :]
    logps, means = [], []
    for t, token in enumerate(answer_ids):
        seen = logits[len(prompt_ids) + t - 1]
        probabilities = seen.exp() / seen.exp().sum()
        logps.append(probabilities[token].log())
        means.append(seen.mean())
    return Answer(torch.stack(logps), torch.stack(means))


def pair_loss(chosen: Tensor, rejected: Tensor, settings: Settings, margin: float = 0.0) -> Tensor:
    """Preference loss of one pair from what is compared of its answers; the data adds `margin` to the target."""
    z = chosen - rejected - settings.gamma_beta_ratio - margin
    if settings.loss_type == "hinge":
        return (1 - settings.beta * z).clamp(min=0)
    right = 1 / (1 + torch.exp(-settings.beta * z))
    wrong = 1 / (1 + torch.exp(settings.beta * z))
    return -(1 - settings.label_smoothing) * right.log() - settings.label_smoothing * wrong.log()


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs with the scores of their answers, and what follows from them."""

    rows: list[dict[str, Any]]
    chosen: list[Answer]
    rejected: list[Answer]
    settings: Settings

    def compared(self) -> list[tuple[Tensor, Tensor]]:
        """What the loss compares of each pair: average or summed log-probabilities."""
        kind = "average" if self.settings.average_log_prob else "sum"
        return [(getattr(w, kind), getattr(r, kind)) for w, r in zip(self.chosen, self.rejected, strict=True)]

    def preference_losses(self) -> list[Tensor]:
        """Preference loss of each pair."""
        return [
            pair_loss(*pair, self.settings, row.get("margin", 0.0))
            for pair, row in zip(self.compared(), self.rows, strict=True)
        ]

    def sft_loss(self) -> Tensor:
        """Negative log-likelihood of the chosen answers, a mean over pairs or over tokens."""
        if self.settings.sft_reduction == "sequence":
            return -torch.stack([answer.average for answer in self.chosen]).mean()
        return -torch.cat([answer.logps for answer in self.chosen]).mean()

    def loss(self) -> Tensor:
        """Loss of all pairs as one batch."""
        return torch.stack(self.preference_losses()).mean() + self.settings.sft_weight * self.sft_loss()

    def metrics(self) -> dict[str, float]:
        """Every metric of these pairs, by its name in the log."""
        with torch.no_grad():
            return self._metrics()

    def _metrics(self) -> dict[str, float]:
        beta, ratio = self.settings.beta, self.settings.gamma_beta_ratio
        pairs = [(float(w), float(r)) for w, r in self.compared()]
        targets = [ratio + row.get("margin", 0.0) for row in self.rows]
        return {
            "loss": float(self.loss()),
            "preference_loss": _mean(float(loss) for loss in self.preference_losses()),
            "sft_loss": float(self.sft_loss()),
            "rewards/chosen": _mean(beta * w for w, _ in pairs),
            "rewards/rejected": _mean(beta * r for _, r in pairs),
            "rewards/accuracies": _mean(float(w > r) for w, r in pairs),
            "rewards/margins": _mean(beta * (w - r) for w, r in pairs),
            "logps/chosen": _mean(w for w, _ in pairs),
            "logps/rejected": _mean(r for _, r in pairs),
            "logps/margins": _mean(w - r for w, r in pairs),
            "logps/past_target": _mean(float(w - r > target) for (w, r), target in zip(pairs, targets, strict=True)),
            "logits/chosen": float(torch.cat([answer.mean_logits for answer in self.chosen]).mean()),
            "logits/rejected": float(torch.cat([answer.mean_logits for answer in self.rejected]).mean()),
            "lengths/chosen": _mean(float(len(row["chosen_ids"])) for row in self.rows),
            "lengths/rejected": _mean(float(len(row["rejected_ids"])) for row in self.rows),
        }


def score_pairs(model: nn.Module, rows: list[dict[str, Any]], settings: Settings | None = None) -> ScoredPairs:
    """Score the answers of token rows one by one."""
    return ScoredPairs(
        rows,
        [score_answer(model, row["prompt_ids"], row["chosen_ids"]) for row in rows],
        [score_answer(model, row["prompt_ids"], row["rejected_ids"]) for row in rows],
        settings or Settings(),
    )


def tokens_of(rows: list[dict[str, Any]]) -> int:
    """Tokens of pairs: prompt + chosen and prompt + rejected of each."""
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """Gradient of `value` with respect to every weight that trains, by name; zeros where it does not depend on it."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for (name, p), grad in zip(weights.items(), found, strict=True)
    }


def assert_scored_as_single_sequences(model: nn.Module, slow: nn.Module, pairs: list, found: Tensor) -> None:
    """Averages that `model` found (all chosen answers, then all rejected) and their gradients are those of `slow`."""
    scored = score_pairs(slow, pairs)
    expected = torch.stack([answer.average for answer in [*scored.chosen, *scored.rejected]])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 1, len(expected))
    (found * weights).sum().backward()
    reference = gradients(slow, (expected * weights).sum())
    for parameter, value in model.named_parameters():
        if parameter in reference:
            gradient = torch.zeros_like(value) if value.grad is None else value.grad
            difference = (gradient - reference[parameter]).norm()
            assert difference <= 1e-5 * reference[parameter].norm() + 1e-6, parameter


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
