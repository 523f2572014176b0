"""What a model card says of each method: its name and tags, what it is, which metrics tell of it, whom to cite."""

from dataclasses import dataclass

_SIMPO = """\
```bibtex
@inproceedings{meng2024simpo,
  title     = {{SimPO}: Simple Preference Optimization with a Reference-Free Reward},
  author    = {Meng, Yu and Xia, Mengzhou and Chen, Danqi},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024}
}
```"""
_DPO = """\
```bibtex
@inproceedings{rafailov2023direct,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano and
               Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023}
}
```"""

# Metric, its name in the table, number format.
Metric = tuple[str, str, str]
_LOSS: Metric = ("loss", "loss", ".4f")
_MARGIN: Metric = ("logps/margins", "margin, {unit}", "+.4f")
_LOGPS: tuple[Metric, ...] = (
    ("logps/chosen", "log-probability of chosen answers, {unit}", ".4f"),
    ("logps/rejected", "log-probability of rejected answers, {unit}", ".4f"),
)


@dataclass(frozen=True)
class MethodText:
    """The words of a method.

    Args:
        name: as people write it.
        tags: for the head of the card.
        training: what follows "trained" in the first sentence.
        metrics: rows of the table of results; a set was measured if it has the second one.
        citation: how its paper is cited, "" without one.
        rows: what it trains on.
    """

    name: str
    tags: tuple[str, ...]
    training: str
    metrics: tuple[Metric, ...]
    citation: str
    rows: str = "pairs"


METHOD_TEXTS = {
    "simpo": MethodText(
        "SimPO",
        ("simpo", "trl", "preference-optimization"),
        "on preference pairs with SimPO (Simple Preference Optimization): a loss without a reference model, in which "
        "the reward of an answer is its log-probability per token",
        (
            _LOSS,
            ("rewards/accuracies", "accuracy (share of pairs whose chosen answer is likelier)", ".3f"),
            _MARGIN,
            ("logps/past_target", "share of pairs past the target margin", ".3f"),
            *_LOGPS,
        ),
        f"SimPO, the method ([arXiv 2405.14734](https://arxiv.org/abs/2405.14734)):\n\n{_SIMPO}",
    ),
    "dpo": MethodText(
        "DPO",
        ("dpo", "trl", "preference-optimization"),
        "on preference pairs with DPO (Direct Preference Optimization) by trl's `DPOTrainer`: the reward of an answer "
        "is how much likelier it is than under the reference model, which is the model that training started from",
        (
            _LOSS,
            ("rewards/accuracies", "accuracy (share of pairs whose chosen answer has the higher reward)", ".3f"),
            ("rewards/margins", "margin of the rewards", "+.4f"),
            _MARGIN,
            *_LOGPS,
        ),
        f"DPO, the method ([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)):\n\n{_DPO}",
    ),
    "sft": MethodText(
        "SFT",
        ("sft", "trl"),
        "by supervised fine-tuning (SFT) with trl's `SFTTrainer`",
        (
            _LOSS,
            ("mean_token_accuracy", "share of tokens that the model would have chosen itself", ".3f"),
            ("entropy", "entropy of its predictions, nats", ".4f"),
        ),
        "",
        rows="rows",
    ),
}
