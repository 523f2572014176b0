"""Greedy answers to some prompts before the first step and at each evaluation: collapse as one can read it."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.greedy import GreedyAnswer, greedy_answers
from ..record.full_disk import ReportWriter
from ..record.samples import SAMPLES_FILE, figures_of_samples, keep_until, repeat_rate, write_samples
from ..tokens.prompt_file import read_prompt_ids
from ..tokens.sets import columns_of, spread_rows
from .randomness import randomness_kept
from .trackers import send_samples

# Enough tokens to see whether an answer ends and whether it repeats itself.
MAX_NEW_TOKENS = 128
_SHOWN = 3
# Rows that are looked at for the token that ends answers, where the prompts come from a file.
_TO_SEE_ENDS = 8
_WIDEST = 200


class SampleCallback(TrainerCallback):
    """Lets the model answer `sample_prompts` prompts of the held-out pairs, or of the training pairs without any.

    The answers go into samples.jsonl, their figures into the log as `samples/...`, and to the health monitor.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._prompts: list[list[int]] = []
        self._end_ids: list[int] = []
        self._step = -1
        self._reports = ReportWriter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step = -1
        self._prompts, self._end_ids = self._chosen(getattr(self.trainer, "shared", self.trainer.args).sample_prompts)
        if state.is_world_process_zero:
            self._reports.write(SAMPLES_FILE, lambda: keep_until(self._file, state.global_step or -1))
        if not state.global_step:
            self._sample(0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.is_in_train:
            self._sample(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.interrupted:
            self._sample(state.global_step)

    @property
    def _file(self) -> Path:
        return Path(str(self.trainer.args.output_dir)) / SAMPLES_FILE

    def _chosen(self, wanted: int | str) -> tuple[list[list[int]], list[int]]:
        """Returns the prompts, of a file or from all over the first held-out set or the training set; and end tokens.

        A chat template may end an answer by another token than the tokenizer's: the last one of answers in the data.
        """
        count = _TO_SEE_ENDS if isinstance(wanted, str) else wanted
        sets = list(self.trainer.held_out_sets().values())
        # More than are needed, because a prompt may stand in several rows.
        rows = (spread_rows(sets[0], 8 * count) if sets else self.trainer.rows_to_measure(8 * count)) if count else None
        if rows is None or "prompt_ids" not in columns_of(rows):
            rows = None
        if isinstance(wanted, str):
            own = read_prompt_ids(Path(wanted).expanduser(), self.trainer.processing_class)
            return own, self._ends(rows)
        if rows is None:
            return [], []
        prompts = {tuple(ids): list(ids) for ids in rows["prompt_ids"] if len(ids)}
        apart = max(1, len(prompts) // count)
        return list(islice(prompts.values(), 0, apart * count, apart)), self._ends(rows)

    def _ends(self, rows: Any) -> list[int]:
        """Returns the tokens that end an answer: the tokenizer's, and the usual last one in rows, if there are any."""
        ends = {self.trainer.processing_class.eos_token_id} - {None}
        if rows is not None:
            ranked = "response_ids" in columns_of(rows)
            answers = [each[0] for each in rows["response_ids"]] if ranked else rows["chosen_ids"]
            ends |= {token for token, _ in Counter(ids[-1] for ids in answers if len(ids)).most_common(1)}
        return sorted(ends)

    def _sample(self, step: int) -> None:
        """Answer the prompts; every process must call it."""
        if not self._prompts or step <= self._step:
            return
        self._step = step
        trainer = self.trainer
        with randomness_kept(trainer.accelerator.device):
            found = greedy_answers(
                trainer.model_wrapped,
                self._prompts,
                trainer.accelerator,
                end_ids=self._end_ids,
                pad_id=next((i for i in (trainer.processing_class.pad_token_id, *self._end_ids) if i is not None), 0),
                max_new_tokens=MAX_NEW_TOKENS,
            )
        figures = figures_of_samples([each.ids for each in found], [each.ended for each in found])
        # Not the trainer's own method: trl's would end the window of its training metrics here.
        Trainer.log(trainer, {f"samples/{name}": value for name, value in figures.items()})
        if trainer.is_world_process_zero():
            rows = [self._row(step, *each) for each in zip(self._prompts, found, strict=True)]
            self._reports.write(SAMPLES_FILE, lambda: write_samples(self._file, rows))
            _show(step, rows, figures)
            send_samples(trainer, rows, step)
        trainer.health.samples(step, figures)

    def _row(self, step: int, prompt: list[int], answer: GreedyAnswer) -> dict[str, Any]:
        decode = self.trainer.processing_class.decode
        return {
            "step": step,
            "prompt": decode(prompt, skip_special_tokens=True),
            "answer": decode(answer.ids, skip_special_tokens=True),
            "tokens": len(answer.ids),
            "ended": answer.ended,
            "repeat_rate": round(repeat_rate(answer.ids), 4),
        }


def _show(step: int, rows: list[dict[str, Any]], figures: Mapping[str, float]) -> None:
    """Print a small table with the first answers."""
    title = (
        f"step {step}  samples  tokens {figures['tokens']:.1f}  ended {figures['ended']:.0%}  repeat rate "
        f"{figures['repeat_rate']:.2f}  distinct-2 {figures['distinct_2']:.2f}"
    )
    table = Table(title=title, title_justify="left", title_style="", show_lines=True)
    for column in ("prompt", "answer"):
        table.add_column(column)
    for row in rows[:_SHOWN]:
        end = "" if row["ended"] else " (cut off)"
        table.add_row(Text(_short(row["prompt"])), Text(_short(row["answer"]) + end))  # brackets are no markup
    Console().print(table)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else f"{line[:_WIDEST]} ..."
