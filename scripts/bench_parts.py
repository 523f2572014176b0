"""Seconds of each step in the model's forward, in backward, and in the optimiser: what is left is around the model."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

PARTS = ("forward", "backward", "optimiser")


class StepParts(TrainerCallback):
    """Clocks the parts of each optimiser step, clipping of gradients with the optimiser; waits for the card at each.

    Args:
        trainer: whose model and accelerator are clocked from now on.
    """

    def __init__(self, trainer: Trainer, cuda: bool):
        self.cuda = cuda
        self.steps: list[dict[str, float]] = []
        self._step = dict.fromkeys(PARTS, 0.0)
        self._began = 0.0
        accelerator: Any = trainer.accelerator
        accelerator.backward = self._clocked("backward", accelerator.backward)
        accelerator.clip_grad_norm_ = self._clocked("optimiser", accelerator.clip_grad_norm_)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clock model and optimiser, which are there by now."""
        kwargs["model"].register_forward_pre_hook(lambda *_: self._begin())
        kwargs["model"].register_forward_hook(lambda *_: self._end("forward"))
        optimiser = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        optimiser.register_step_pre_hook(lambda *_: self._begin())
        optimiser.register_step_post_hook(lambda *_: self._end("optimiser"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step."""
        self.steps.append(self._step)
        self._step = dict.fromkeys(PARTS, 0.0)

    def _clocked(self, part: str, function: Callable) -> Callable:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            result = function(*args, **kwargs)
            self._end(part)
            return result

        return clocked

    def _begin(self) -> None:
        self._began = self._now()

    def _end(self, part: str) -> None:
        self._step[part] += self._now() - self._began

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def around(steps: list[dict[str, float]], seconds: list[float]) -> float:
    """The share of the time of steps that none of their parts has: batches, loss, scheduler, logs, Python.

    Args:
        seconds: of each of these steps, with what lies between it and the one before.
    """
    return 1 - sum(sum(step.values()) for step in steps) / sum(seconds)
