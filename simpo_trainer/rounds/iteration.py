"""`simpo iterate`: rounds of answers, scores and training, each from the model of the one before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..answers.journal import only_writer
from ..answers.requests import Prompt
from ..answers.row_files import write_rows, write_text
from ..errors import SimPOError
from ..log import get_logger
from ..recipe.answer_keys import IterateSettings
from ..recipe.load import ReadRecipe
from ..record.privacy import public_label
from ..train.stop import STOP_SIGNALS
from .checks import check_iteration
from .facts import RoundFacts, read_round, standing
from .files import RoundFiles, is_trained, prompt_files
from .held_out_prompts import PromptSplit
from .picture import rounds_picture
from .report import as_csv, as_json, show
from .stage_process import run_stage
from .stages import Stages, shown

logger = get_logger(__name__)

# Runs `simpo` with words, and returns its exit status.
RunStage = Callable[[Sequence[str]], int]

GO_ON = "What was finished is kept: the same command goes on from there."


class StageEnded(Exception):
    """A stage ended before its end, with this exit status; the message of a failure is shown already."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a stage ended with status {status}")
        self.status = status


def iterate(
    recipe: ReadRecipe,
    settings: IterateSettings,
    launching: Sequence[str] = (),
    *,
    run: RunStage = run_stage,
    console: Console | None = None,
) -> list[RoundFacts]:
    """Make rounds in the folder of a recipe, or go on with them: answers, rows to train on, a model, its score.

    Each stage is a command of `simpo`; one whose file is there already is not run again. After each round
    `rounds.json`, `rounds.csv` and `rounds.png` tell of all so far.

    Args:
        recipe: the model, the prompts, the training, and in `generate` and `annotate` the answers and their scorer.
        settings: how many rounds.
        launching: options of `simpo train` that start several processes.
        run: runs a stage.
        console: what the table is printed on.

    Returns:
        The facts of the start and of the rounds.

    Raises:
        SimPOError: something is wrong with the recipe, the data or the folder.
        StageEnded: a stage failed, or was stopped by a signal.
    """
    stages = Stages(recipe, launching)
    split = check_iteration(recipe, settings.rounds, stages.output_dir)
    with only_writer(stages.output_dir / "rounds.json"):
        _write_prompts(stages.output_dir, split)
        start_model = public_label(str(recipe.values["model_name_or_path"]))
        return _Rounds(stages, settings, run, console or Console(), start_model).make()


def _write_prompts(output_dir: Path, split: PromptSplit) -> None:
    for path, prompts in zip(prompt_files(output_dir), (split.train, split.held_out), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_rows(path, [written_row(prompt) for prompt in prompts])


def written_row(prompt: Prompt) -> dict[str, Any]:
    """Returns a prompt as a row of a file, from which the same prompt is read again."""
    return {"prompt": prompt.messages, **prompt.template_columns, **prompt.columns}


@dataclass
class _Rounds:
    """The rounds of an iteration whose recipe is checked, and whose prompts are written."""

    stages: Stages
    settings: IterateSettings
    run: RunStage
    console: Console
    start_model: str
    reported: int = 0  # the rounds that the files and the last table tell of, the start among them

    def make(self) -> list[RoundFacts]:
        """Make those that are not there yet, and return the facts of all."""
        facts = self._made(0)
        for number in range(1, self.settings.rounds + 1):
            if standing(facts).below >= self.settings.patience:
                break
            facts = self._made(number)
        self._conclude(facts)
        return facts

    def _made(self, number: int) -> list[RoundFacts]:
        """Make a round, tell of it, and return the facts of all up to it."""
        files, stages = RoundFiles(self.stages.output_dir, number), self.stages
        ran = self._stage(files.answers, stages.sample(files))
        ran |= self._stage(files.pairs, stages.pair(files))
        if number:
            ran |= self._stage(files.model, stages.train(files))
        ran |= self._stage(files.greedy, stages.answer_held_out(files))
        ran |= self._stage(files.held_out, stages.score_held_out(files))
        facts = [read_round(stages.output_dir, each, self.start_model) for each in range(number + 1)]
        if ran:
            self._report(facts)
        return facts

    def _stage(self, result: Path, words: Sequence[str]) -> bool:
        """Run a stage whose result is not there yet, and return whether it was run.

        Raises:
            StageEnded: it failed, or a signal has stopped it.
            SimPOError: its result is elsewhere.
        """
        if _is_there(result):
            return False
        command = shown(words)
        logger.info(f"{result.parent.name}: {command}")
        status = self.run(words)
        if status - 128 in map(int, STOP_SIGNALS):
            logger.info(f"Stopped. {GO_ON}")
            raise StageEnded(status)
        if status == 128 + _SIGKILL:
            logger.error(f"`simpo {words[0]}` was killed; the usual reason is that the machine ran out of memory.")
        if status:
            logger.error(f"`simpo {words[0]}` failed (exit status {status}). {GO_ON}")
            raise StageEnded(status)
        if not _is_there(result):
            raise SimPOError(f"`simpo {words[0]}` has ended, but {result} is not there; its messages say why. {GO_ON}")
        return True

    def _report(self, facts: Sequence[RoundFacts]) -> None:
        """Write the files over the rounds, and print the table."""
        output_dir, stands = self.stages.output_dir, standing(facts)
        write_text(output_dir / "rounds.json", as_json(facts, stands))
        write_text(output_dir / "rounds.csv", as_csv(facts))
        rounds_picture(facts, stands.best, output_dir / "rounds.png")
        show(facts, stands.best, self.console)
        self.reported = len(facts)

    def _conclude(self, facts: Sequence[RoundFacts]) -> None:
        """Tell why no other round follows, and where the best model is."""
        if self.reported != len(facts):  # also where the process was killed before it could
            self._report(facts)
        stands, output_dir = standing(facts), self.stages.output_dir
        if stands.below >= self.settings.patience:
            logger.info(
                f"No other round is begun: the held-out score was below the best for {stands.below} "
                f"round{'s' if stands.below > 1 else ''} in a row (patience: {self.settings.patience})."
            )
        if not stands.best.round:
            logger.warning("No round has a higher held-out score than the start model.")
            return
        logger.info(
            f"The best is round {stands.best.round}, with a held-out score of {stands.best.held_out_score:.4g} "
            f"({facts[0].held_out_score:.4g} at the start): its model is in {output_dir / stands.best.model}. The "
            f"picture of the rounds is {output_dir / 'rounds.png'}."
        )


_SIGKILL = 9  # Windows has no name for it


def _is_there(result: Path) -> bool:
    """Returns whether a stage was finished: its file is written whole or not at all, a run is sealed."""
    return is_trained(result) if result.name == "model" else result.is_file()
