"""The conditions of a run, read from its manifest: what must be equal in two runs for a fair comparison."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

FULL = "full"


@dataclass(frozen=True)
class Conditions:
    """The data, budget and settings of a run; None for what its manifest does not say or its method does not have.

    Args:
        steps: optimiser steps that were made.
        pairs_seen: pairs trained on, repetitions counted; for SFT the chosen answers of as many pairs.
        epochs: passes over the training set.
        learning_rate: its peak.
        pairs_per_step: pairs of a global batch; a mean for ranked answers.
        adapter: "full" for training without an adapter, or the adapter's kind and rank.
        training_pairs: pairs of the training set.
        seed: of the random numbers.
        beta: the scale of the loss.
        target_margin: the margin that the loss aims at, in the unit of the run.
        on_conversations: whether it was trained on single texts, which are no pairs.
    """

    steps: int | None = None
    pairs_seen: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    pairs_per_step: float | None = None
    adapter: str | None = None
    training_pairs: int | None = None
    seed: int | None = None
    beta: float | None = None
    target_margin: float | None = None
    on_conversations: bool = False

    @classmethod
    def of(cls, manifest: Json, metrics: Json, log: Sequence[Json]) -> "Conditions":
        """Returns the conditions of a run.

        Args:
            manifest: its manifest.
            metrics: the last value of each metric.
            log: the log of its trainer.
        """
        method = str(manifest.get("method") or "simpo")
        settings, batch = _part(manifest, method), _part(manifest, "batch")
        train = _part(_part(_part(manifest, "data"), "sets"), "train")
        steps = _part(manifest, "results").get("steps")
        on_conversations = method == "sft" and train.get("pairs_sha256", "") is None
        texts = on_conversations or bool(settings.get("packing"))  # a packed row holds several texts
        pairs = None if texts else train.get("pairs", train.get("rows"))
        seen = metrics.get("num_pairs_seen")
        if seen is None and not texts and not train.get("ranked"):
            seen = _pairs_after(steps, pairs, batch, _part(_part(manifest, "recipe"), "settings"))
        return cls(
            steps=steps,
            pairs_seen=seen,
            epochs=max((entry["epoch"] for entry in log if "epoch" in entry), default=None),
            learning_rate=_part(manifest, "training").get("learning_rate"),
            pairs_per_step=None if texts else _pairs_per_step(batch.get("global"), train),
            adapter=_adapter(_part(manifest, "model")),
            training_pairs=pairs,
            seed=_part(manifest, "seeds").get("seed"),
            beta=settings.get("beta"),
            target_margin=manifest.get("target_margin"),
            on_conversations=on_conversations,
        )


def _pairs_after(steps: int | None, pairs: int | None, batch: Json, settings: Json) -> int | None:
    """Returns the pairs that a trainer of trl has seen after so many steps; the last batch of an epoch is smaller."""
    if steps is None or not {"per_device", "processes", "accumulation"} <= batch.keys():
        return None
    micro = batch["per_device"] * batch["processes"]
    if pairs is None:
        return steps * micro * batch["accumulation"]
    batches = pairs // micro if settings.get("dataloader_drop_last") else math.ceil(pairs / micro)
    of_epoch = min(pairs, batches * micro)
    epochs, rest = divmod(steps, max(1, math.ceil(batches / batch["accumulation"])))
    return epochs * of_epoch + min(rest * micro * batch["accumulation"], of_epoch)


def _pairs_per_step(rows: int | None, train: Json) -> float | None:
    """Returns the pairs in a global batch of so many rows."""
    if rows is None or not train.get("ranked"):
        return rows
    return rows * train["pairs"] / train["rows"] if train.get("pairs") and train.get("rows") else None


_NAMES = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr"}


def _adapter(model: Json) -> str | None:
    if "adapter" not in model:
        return None
    adapter = model["adapter"]
    if not adapter:
        return FULL
    kind = str(adapter.get("peft_type", "adapter")).removeprefix("PeftType.")
    name = "DoRA" if adapter.get("use_dora") else _NAMES.get(kind, kind)
    return f"{name} r {adapter['r']}" if adapter.get("r") else name


def _part(record: Json, name: str) -> Json:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}
