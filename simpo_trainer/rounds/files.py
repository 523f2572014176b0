"""The files of an iteration in its folder: those of the start model, and those of each round."""

from dataclasses import dataclass
from pathlib import Path

from ..record.seal import broken_files, read_seal

# Tells what an iteration was begun with.
IDENTITY = "iteration.json"


@dataclass(frozen=True)
class RoundFiles:
    """The files of a round; number 0 is the start, whose model is the recipe's.

    Args:
        output_dir: the folder of the iteration.
        number: of the round.
    """

    output_dir: Path
    number: int

    @property
    def name(self) -> str:
        """Returns the name of its folder."""
        return f"round-{self.number}" if self.number else "start"

    @property
    def folder(self) -> Path:
        """Returns its folder."""
        return self.output_dir / self.name

    @property
    def answers(self) -> Path:
        """Returns the sampled answers to the prompts that are trained on; for the start, to the held-out ones."""
        return self.folder / ("answers.jsonl" if self.number else "held-out-sampled.jsonl")

    @property
    def pairs(self) -> Path:
        """Returns the rows that are made of those answers: to train on; for the start, to evaluate on."""
        return self.folder / ("pairs.jsonl" if self.number else "held-out-pairs.jsonl")

    @property
    def model(self) -> Path:
        """Returns the folder of the round's training."""
        return self.folder / "model"

    @property
    def greedy(self) -> Path:
        """Returns the greedy answers of the model that the round has made to the held-out prompts."""
        return self.folder / "held-out-answers.jsonl"

    @property
    def held_out(self) -> Path:
        """Returns the same answers with their scores: the last file of a round."""
        return self.folder / "held-out.jsonl"


def prompt_files(output_dir: Path) -> tuple[Path, Path]:
    """Returns the files of the prompts that are trained on, and of those that are held out."""
    return output_dir / "start" / "prompts.jsonl", output_dir / "start" / "held-out-prompts.jsonl"


def is_finished(folder: Path) -> bool:
    """Returns whether a folder holds a finished run."""
    seal = read_seal(folder)
    return bool(seal and not seal.get("open", True) and seal.get("finished"))


def is_trained(folder: Path) -> bool:
    """Returns whether a folder holds a finished run whose model is as it was saved, which is read for that."""
    return is_finished(folder) and not broken_files(folder)
