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


@dataclass(frozen=True)
class MethodText:
    """The words of a method.

    Args:
        name: as people write it.
        tags: for the head of the card.
        training: what follows "trained" in the first sentence.
        won: what makes the chosen answer of a pair win, for its accuracy; "" for training on single texts.
        citation: how its paper is cited, "" without one.
        rows: what it trains on.
    """

    name: str
    tags: tuple[str, ...]
    training: str
    won: str
    citation: str
    rows: str = "pairs"


METHOD_TEXTS = {
    "simpo": MethodText(
        "SimPO",
        ("simpo", "trl", "preference-optimization"),
        "on preference pairs with SimPO (Simple Preference Optimization): a loss without a reference model, in which "
        "the reward of an answer is its log-probability per token",
        "is likelier",
        f"SimPO, the method ([arXiv 2405.14734](https://arxiv.org/abs/2405.14734)):\n\n{_SIMPO}",
    ),
    "dpo": MethodText(
        "DPO",
        ("dpo", "trl", "preference-optimization"),
        "on preference pairs with DPO (Direct Preference Optimization) by trl's `DPOTrainer`: the reward of an answer "
        "is how much likelier it is than under the reference model, which is the model that training started from",
        "has the higher reward",
        f"DPO, the method ([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)):\n\n{_DPO}",
    ),
    "sft": MethodText(
        "SFT",
        ("sft", "trl"),
        "by supervised fine-tuning (SFT) with trl's `SFTTrainer`",
        "",
        "",
        rows="rows",
    ),
}
