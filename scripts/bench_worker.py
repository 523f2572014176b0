"""One row of the training benchmark in a process of its own: `python bench_worker.py FOLDER ROW`.

Reads FOLDER/job.json, writes FOLDER/result.json.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from bench_model import make_model
from bench_parts import StepParts
from bench_process import end_by_itself
from bench_rows import epochs_in_order, two_by_two
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    set_seed,
)

from simpo_trainer import SimPOConfig, SimPOTrainer

BETA, RATIO = 2.0, 0.5
# The row that trains on prompts with ranked answers; all others train on their pairs two by two.
RANKED = "ours, ranked"
# Name to layout; None is trl.
ROWS: dict[str, Any] = {
    "trl CPO": None,
    "ours, padded": "padded",
    "ours, shared_prefix": "shared_prefix",
    "ours, packed": "packed",
    RANKED: "auto",
}
_MEMORY = Path("/proc/self")


class StepClock(TrainerCallback):
    """When each optimiser step was done, and the memory from the first on.

    Args:
        clock: "wall", or "cpu" for the seconds of this process's own work.
    """

    def __init__(self, cuda: bool, clock: str):
        self.cuda = cuda
        self._clock = time.process_time if clock == "cpu" else time.perf_counter
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was the peak before the first step, such as that of checks at the start."""
        if not self.ends:
            _reset_peak(self.cuda)
            self.ends.append(self._now())
        self.begins.append(self._now())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(self._now())

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self._clock()

    def seconds(self) -> list[float]:
        """Seconds of every step, with what lies between it and the one before."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]

    def waits(self) -> list[float]:
        """The part of it that lies between the steps: the next batch is fetched and collated, the last one logged."""
        return [begin - end for end, begin in zip(self.ends, self.begins, strict=False)]


class LastPass(TrainerCallback):
    """Profiles the third epoch, which is the last."""

    def __init__(self) -> None:
        self.profiler = torch.profiler.profile()
        self.running = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start behind the warm-up and a pass that is clocked, which a profiler would slow."""
        if round(state.epoch) == 2 and not self.running:
            self.profiler.start()
            self.running = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop before anything is saved."""
        self.profiler.stop()

    def operators(self) -> dict[str, float]:
        """Seconds of each operator without those that it calls."""
        return {
            event.key: (event.self_device_time_total or event.self_cpu_time_total) / 1e6
            for event in self.profiler.key_averages()
        }


def main(folder: Path, row: str) -> None:
    """Measure, write the result."""
    job = json.loads((folder / "job.json").read_text())
    end_by_itself(job)
    result = _train(job, row, str(folder / "output"))
    if os.environ.get("RANK", "0") == "0":
        (folder / "result.json").write_text(json.dumps(result))


def _train(job: dict[str, Any], row: str, output: str) -> dict[str, Any]:
    set_seed(job["seed"])
    clock = StepClock(job["cuda"], job["clock"])
    trainer = _trainer(job, row, output, make_model(job), clock)
    profile = LastPass() if job.get("profile") else None
    parts = StepParts(trainer, job["cuda"]) if profile else None
    for callback in filter(None, (profile, parts)):
        trainer.add_callback(callback)
    before = _resident(job["cuda"])
    trainer.train()
    peak = _peak(job["cuda"])
    return {
        "seconds": clock.seconds(),
        "waits": clock.waits(),
        "parts": parts.steps if parts else [],
        "operators": profile.operators() if profile else {},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_bytes": None if peak is None or before is None else peak - before,
    }


def _trainer(job: dict[str, Any], row: str, output: str, model: Any, clock: StepClock) -> Trainer:
    pairs_of_a_row = len(two_by_two(job["rows"][:1]))
    each = job["pairs"] // job.get("processes", 1)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": each * (1 if row == RANKED else pairs_of_a_row),
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": job["gradient_checkpointing"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_length": job["max_length"],
        "beta": BETA,
        "bf16": job["bf16"],
        "use_cpu": not job["cuda"],
        "seed": job["seed"],
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    shared: dict[str, Any] = {"processing_class": _tokenizer(job["folder"]), "callbacks": [clock]}
    if layout := ROWS[row]:
        args = SimPOConfig(
            output,
            num_train_epochs=job["epochs"],
            max_steps=job["epochs"] * len(job["rows"]) // job["pairs"],
            gamma_beta_ratio=RATIO,
            max_prompt_length=job["max_length"] - 1,
            batch_layout=layout,
            **settings,
        )
        if row == RANKED or pairs_of_a_row == 1:
            return SimPOTrainer(model, args, train_dataset=Dataset.from_list(job["rows"]), **shared)
        # A stream keeps its order, and with it the pairs of a prompt in one step.
        return SimPOTrainer(model, args, train_dataset=_in_order(job).to_iterable_dataset(), **shared)
    from bench_trl import trl_trainer  # here: it is this row alone that needs trl's trainer

    return trl_trainer(model, _in_order(job), output, BETA * RATIO, settings, shared)


def _tokenizer(folder: str | None) -> PreTrainedTokenizerBase:
    """The model's own; of a random model, a name for the padding, which is all that either trainer needs here."""
    if folder:
        return AutoTokenizer.from_pretrained(folder)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def _in_order(job: dict[str, Any]) -> Dataset:
    """The pairs of all passes, in the order in which the trainer takes the rows that they are made of."""
    return Dataset.from_list(two_by_two(epochs_in_order(job["rows"], job["pairs"], job["epochs"], job["seed"])))


def _status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where there is none."""
    try:
        lines = (_MEMORY / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _resident(cuda: bool) -> int | None:
    return 0 if cuda else _status("VmRSS")


def _peak(cuda: bool) -> int | None:
    return torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")


def _reset_peak(cuda: bool) -> None:
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        (_MEMORY / "clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the process, which the training nearly always is


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
