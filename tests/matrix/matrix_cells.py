"""The cells of the matrix: what trains, under which engine, with which layout; and how each must end."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from engines import ENGINES

LORA = {"use_peft": "true", "lora_target_modules": "all-linear", "lora_r": "4", "lora_alpha": "8"}
# By what trains: the settings of a recipe.
MODELS: dict[str, dict[str, str]] = {
    "full": {},
    "LoRA": LORA,
    "LoRA, head and embeddings saved": {**LORA, "lora_modules_to_save": "[lm_head, embed_tokens]"},
    "LoRA on the head": {**LORA, "lora_target_modules": "[q_proj, v_proj, lm_head]"},
    "DoRA": {**LORA, "use_dora": "true"},
    "QLoRA, 4 bits": {**LORA, "load_in_4bit": "true", "model_name_or_path": "wide"},
    "QLoRA, 8 bits": {**LORA, "load_in_8bit": "true", "model_name_or_path": "wide"},
}
CHECKPOINTING = ("off", "on")
LAYOUTS = ("padded", "shared_prefix", "packed")
# By what trains and the engine: a part of the error that refuses the two, and says why.
REFUSED = {
    **{("DoRA", engine): "use_dora is true under DeepSpeed ZeRO-3" for engine in ("ZeRO-3", "ZeRO-3, zero.Init")},
    **{("QLoRA, 8 bits", engine): "load_in_8bit is true under FSDP" for engine in ("FSDP2", "FSDP2, parts")},
    ("QLoRA, 8 bits", "ZeRO-2"): "load_in_8bit is true under DeepSpeed ZeRO-2",
}


@dataclass(frozen=True)
class Cell:
    """One combination; `kind` is the engine."""

    model: str
    kind: str
    checkpointing: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.model} / {self.kind} / checkpointing {self.checkpointing} / {self.layout}"

    @property
    def values(self) -> tuple[str, str, str, str]:
        return self.model, self.kind, self.checkpointing, self.layout

    @property
    def settings(self) -> dict[str, str]:
        checkpointing = {"gradient_checkpointing": "true"} if self.checkpointing == "on" else {}
        return {**MODELS[self.model], "batch_layout": self.layout, **checkpointing}

    @property
    def refused(self) -> str | None:
        return REFUSED.get((self.model, self.kind))


def all_cells() -> list[Cell]:
    """Every model under every engine, the other two such that every two values of two factors meet in a cell."""
    cells = list(_cells())
    factors = (tuple(MODELS), tuple(ENGINES), CHECKPOINTING, LAYOUTS)
    for one, two in combinations(range(len(factors)), 2):
        met = {(cell.values[one], cell.values[two]) for cell in cells}
        absent = {(first, second) for first in factors[one] for second in factors[two]} - met
        assert not absent, absent
    return cells


def _cells() -> Iterator[Cell]:
    for row, model in enumerate(MODELS):
        for column, engine in enumerate(ENGINES):
            yield Cell(model, engine, CHECKPOINTING[(row + column) % 2], LAYOUTS[(row + 2 * column) % 3])
