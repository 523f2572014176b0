"""The language-model head against its floor: the matrix products that no implementation can avoid.

Every row computes the log-probability of a target token per position, and the gradients with respect to hidden states
and head weight. The table gives the time, its ratio to one product of all hidden states with the head, and the largest
difference of log-probabilities from those of full logits in float64. All rows run in one process in turn.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
import trl
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from simpo_trainer.model import head as tiled

Logps = Callable[[], Tensor]


def run_head(sizes: argparse.Namespace) -> None:
    """Time every way, print the table.

    Args:
        sizes: `vocab`, `hidden`, `positions`, `repeats`.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    head = nn.Linear(sizes.hidden, sizes.vocab, bias=False, device=device)
    hidden = torch.randn(sizes.positions, sizes.hidden, device=device, requires_grad=True)
    targets = torch.randint(sizes.vocab, (sizes.positions,), device=device)

    seconds = _time_in_turn(_ways(head, hidden, targets), (hidden, head.weight), sizes.repeats)
    errors = {name: _error(logps, head, hidden, targets) for name, logps in _ways(head, hidden, targets).items()}
    floor = statistics.median(seconds["one product, forward only"])
    rows = [
        {
            "way": name,
            "seconds": statistics.median(times),
            "products": statistics.median(times) / floor,
            "error": errors[name],
        }
        for name, times in seconds.items()
    ]
    _print(rows, sizes, device)


def _ways(head: nn.Linear, hidden: Tensor, targets: Tensor) -> dict[str, Logps]:
    """Each way to the target log-probabilities, (positions,); the first one only multiplies."""
    plain = tiled.LogitTransform()

    def ours(keep: int) -> Logps:
        def logps() -> Tensor:
            tiled.KEEP_ELEMENTS = keep
            return tiled.token_logps(hidden, head, targets, plain)[0]

        return logps

    def one_product() -> Tensor:
        with torch.no_grad():
            for rows in hidden.split(tiled.TILE_POSITIONS):
                rows @ head.weight.t()
        return torch.zeros(())

    def full() -> Tensor:
        return head(hidden).log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    ways: dict[str, Logps] = {
        "one product, forward only": one_product,
        "ours, exponentials kept": ours(keep=2**62),
        "ours, recomputed": ours(keep=0),
        "full logits": full,
        "trl ChunkedLogProbFunction": lambda: tiled._kernel_logps(hidden, head.weight, None, targets, plain)[0],
    }
    if hasattr(F, "linear_cross_entropy"):
        ways["torch linear_cross_entropy"] = lambda: (
            -F.linear_cross_entropy(hidden, head.weight, targets, reduction="none")
        )
    return ways


def _time_in_turn(ways: dict[str, Logps], inputs: tuple[Tensor, ...], repeats: int) -> dict[str, list[float]]:
    """Seconds of forward and backward of every way, in turn, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, logps in ways.items():
            _synchronise()
            start = time.perf_counter()
            result = logps()
            if result.requires_grad:
                torch.autograd.grad(result.sum(), inputs)
            _synchronise()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _error(logps: Logps, head: nn.Linear, hidden: Tensor, targets: Tensor) -> float | None:
    with torch.no_grad():
        found = logps()
        if found.dim() == 0:
            return None
        worst = 0.0
        for rows in torch.arange(len(targets), device=targets.device).split(256):
            exact = (hidden[rows].double() @ head.weight.double().t()).log_softmax(-1)
            exact = exact.gather(-1, targets[rows, None])[:, 0]
            worst = max(worst, (found[rows] - exact).abs().max().item())
    return worst


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _print(rows: list[dict], sizes: argparse.Namespace, device: torch.device | None) -> None:
    setting = {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{device}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "python": platform.python_version(),
        **{name: getattr(sizes, name) for name in ("vocab", "hidden", "positions", "repeats")},
    }
    console = Console(width=110)
    console.print(", ".join(f"{key} {value}" for key, value in setting.items()), highlight=False)
    table = Table("way", "seconds", "in products", "largest error, nats")
    for row in rows:
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        table.add_row(row["way"], f"{row['seconds']:.3f}", f"{row['products']:.2f}", error)
    console.print(table)
    print(json.dumps({"setting": setting, "rows": rows}))
