"""The pace of a training, the time left and its memory: the end of its lines in a log file."""

import time
from collections.abc import Mapping

import torch
from transformers import TrainerState, TrainingArguments

from ..record.peak_memory import own_peak

# Names in the logs of what is counted from the start of a training; trl's trainers have a name of their own.
_PAIRS, _TOKENS = ("num_pairs_seen",), ("num_tokens_seen", "num_tokens")


class Pace:
    """Measures one training, from its construction on.

    Args:
        args: tells how many rows a step takes, and the device whose memory is shown.
        state: tells the step and the tokens that a resumed training begins with.
    """

    def __init__(self, args: TrainingArguments, state: TrainerState) -> None:
        self.args = args
        self._first = self._step = state.global_step
        self._begin = self._since = time.monotonic()
        # A resumed training does not know what else was counted before: the first line after it goes without.
        self._counts: dict[str, float] = {"num_tokens_seen": state.num_input_tokens_seen}
        if not self._first:
            self._counts = dict.fromkeys((*_PAIRS, *_TOKENS), 0)

    def leave_out(self, logs: Mapping[str, float]) -> None:
        """Take the time of an evaluation, which its log tells, out of the rates; the time left includes such times."""
        self._since += sum(value for name, value in logs.items() if name.endswith("_runtime"))

    def of(self, logs: Mapping[str, float], step: int, last: int) -> str:
        """Returns the rates since the last call, the peak memory of this process, the time gone and the time left.

        Args:
            logs: a log of the training.
            step: its step.
            last: the last step of the training.
        """
        now = time.monotonic()
        seconds, steps = max(now - self._since, 1e-9), step - self._step
        pairs, tokens = self._more(logs, _PAIRS), self._more(logs, _TOKENS)
        rows = steps * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        parts = [f"rows/s {_rate(rows / seconds)}" if pairs is None else f"pairs/s {_rate(pairs / seconds)}"]
        if tokens is not None:
            parts.append(f"tokens/s {_rate(tokens / seconds)}")
        if peak := own_peak(torch.device(self.args.device)):
            parts.append(f"memory {peak / 1e9:.2f}GB")
        gone = now - self._begin
        left = gone / max(step - self._first, 1) * (last - step)
        parts += [f"time {_clock(gone)}", f"left {_clock(left)}"]
        self._since, self._step = now, step
        return "  ".join(parts)

    def _more(self, logs: Mapping[str, float], names: tuple[str, ...]) -> float | None:
        """Returns how much was counted since the last call; None where that is unknown."""
        name = next((name for name in names if name in logs), None)
        if name is None:
            return None
        before, self._counts[name] = self._counts.get(name), logs[name]
        return None if before is None else logs[name] - before


def _rate(value: float) -> str:
    """Returns a rate with three digits or, from a hundred on, as a whole number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
