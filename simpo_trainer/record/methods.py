"""The methods that a recipe can name: one row for each, with its classes, its rules and its texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from .metric_table import DPO_LACKS, SFT_LACKS, SIMPO_LACKS

# Learning rates of preference training are not above this.
PREFERENCE_RATE = 5e-6

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
class Method:
    """A way to train. Classes and functions are given as "package.module:name" and imported when they are used.

    Args:
        name: its name in a recipe.
        title: its name in texts.
        tags: tags for the head of the model card.
        training: a text that follows "trained" in the first sentence of the card.
        won: the condition for a chosen answer to win its pair in the accuracy; "" for training on single texts.
        citation: the citation of its paper; "" without one.
        rows: the word for its training rows.
        trainer: the class of its trainer; "" for SimPO, whose trainer a run may replace by a subclass.
        arguments: the class of its trainer's arguments; "" for SimPO.
        settle: a function that checks and completes the recipe's values for the method; "" if there is nothing to do.
        usual: defaults of `SimPOConfig` for this method, where those of SimPO do not fit it.
        with_reference: whether rewards are measured against a reference model.
        on_conversations: whether it also trains on rows of `messages`.
        unmeasured: metrics of the metric table that its evaluations lack.
    """

    name: str
    title: str
    tags: tuple[str, ...]
    training: str
    won: str
    citation: str = ""
    rows: str = "pairs"
    trainer: str = ""
    arguments: str = ""
    settle: str = ""
    usual: Mapping[str, Any] = field(default_factory=dict)
    with_reference: bool = False
    on_conversations: bool = False
    unmeasured: tuple[str, ...] = ()

    @property
    def is_simpo(self) -> bool:
        """Returns whether this package's own trainer trains, with its own losses."""
        return not self.trainer

    def load(self, what: str) -> Any:
        """Returns the class or function that a field names, or None for "".

        Args:
            what: the field: "trainer", "arguments" or "settle".
        """
        place = getattr(self, what)
        return resolve_name(place) if place else None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="simpo",
            title="SimPO",
            tags=("simpo", "trl", "preference-optimization"),
            training="on preference pairs with SimPO (Simple Preference Optimization): a loss without a reference "
            "model, in which the reward of an answer is its log-probability per token",
            won="is likelier",
            citation=f"SimPO, the method ([arXiv 2405.14734](https://arxiv.org/abs/2405.14734)):\n\n{_SIMPO}",
            unmeasured=SIMPO_LACKS,
        ),
        Method(
            name="dpo",
            title="DPO",
            tags=("dpo", "trl", "preference-optimization"),
            training="on preference pairs with DPO (Direct Preference Optimization) by trl's `DPOTrainer`: the reward "
            "of an answer is how much likelier it is than under the reference model, which is the model that training "
            "started from",
            won="has the higher reward",
            citation=f"DPO, the method ([arXiv 2305.18290](https://arxiv.org/abs/2305.18290)):\n\n{_DPO}",
            trainer="simpo_trainer.baselines.dpo:DPOBaseline",
            arguments="simpo_trainer.baselines.settings:DPOArguments",
            settle="simpo_trainer.baselines.dpo_losses:settle_losses",
            with_reference=True,
            unmeasured=DPO_LACKS,
        ),
        Method(
            name="sft",
            title="SFT",
            tags=("sft", "trl"),
            training="by supervised fine-tuning (SFT) with trl's `SFTTrainer`",
            won="",
            rows="rows",
            trainer="simpo_trainer.baselines.sft:SFTBaseline",
            arguments="simpo_trainer.baselines.settings:SFTArguments",
            usual={"learning_rate": 2e-5},
            on_conversations=True,
            unmeasured=SFT_LACKS,
        ),
    )
}
