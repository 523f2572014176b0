"""Output folders of runs as a comparison reads them, and what it printed of them."""

import io
import json

from rich.console import Console

from pictures import saved_figures
from simpo_trainer.record.folders import MANIFEST
from simpo_trainer.results.command import compare

SETS = {"train": {"rows": 20, "tokens_sha256": "a" * 64}, "eval": {"rows": 8, "tokens_sha256": "b" * 64}}


def evaluation(step, accuracy, chosen, rejected, *, ours=True, prefix="eval_"):
    """An entry of the log as SimPO logs it, or with the names that trl has."""
    found = {"rewards/accuracies": accuracy, "logps/chosen": chosen, "logps/rejected": rejected, "runtime": 0.1 + step}
    if ours:
        found |= {"logps/margins": chosen - rejected, "lengths/chosen": 3.0, "lengths/rejected": 12.5}
    return {"step": step} | {prefix + name: value for name, value in found.items()}


def training(step, chosen):
    return {"step": step, "loss": 0.5, "rewards/accuracies": 0.5, "logps/chosen": chosen, "logps/rejected": -1.5}


def write_run(folder, log, *, state="trainer_state.json", method="simpo", loss="sigmoid", runtime=75.0, **manifest):
    """An output folder with a manifest and a log.

    Args:
        state: where the log is, or None for nowhere.
        manifest: parts of the manifest, in the place of those of a finished run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if runtime is not None:
        log = [*log, {"step": 30, "train_runtime": runtime}]
    metrics = {name: value for entry in log for name, value in entry.items() if name != "step"}
    unit = {"log_prob_unit": "nats per token"} if method == "simpo" else {}
    whole = {
        "status": "finished",
        "method": method,
        method: {"loss_type": loss},
        "peak_memory": {"bytes": 3 * 2**30, "of": "accelerator"},
        "model": {"label": "org/base"},
        "data": {"sets": SETS},
        "batch": {"optimiser_steps": 30},
        "results": {"steps": 30, "metrics": metrics},
    }
    (folder / MANIFEST).write_text(json.dumps(whole | unit | manifest))
    if state:
        (folder / state).parent.mkdir(exist_ok=True)
        (folder / state).write_text(json.dumps({"log_history": log, "global_step": 30}))
    return folder


SIMPO = [
    evaluation(0, 0.5, -1.0, -1.25),
    training(10, -0.875),
    evaluation(10, 0.875, -0.75, -1.5),
    training(20, -0.75),
    evaluation(20, 0.875, -0.5, -1.75),
    training(30, -0.5),
    evaluation(30, 0.75, -1.5, -3.5),
]
DPO = [
    evaluation(0, 0.0, -20.0, -30.0, ours=False),
    evaluation(15, 0.625, -22.0, -36.0, ours=False),
    evaluation(30, 0.5, -25.0, -45.0, ours=False),
]


def compared(*folders, output=None):
    """The comparison, and what was printed."""
    console = Console(file=io.StringIO(), width=80)
    found = compare(folders, output, console)
    return found, console.file.getvalue()


def rows(text):
    """The cells of the printed table by the titles of its rows."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in lines}


def scored(accuracy, margin, chosen, **more):
    return {"accuracy": accuracy, "margin": margin, "chosen": chosen, "rejected": chosen - margin, **more}


def held_out(start, end):
    return {"eval": {"tokens_sha256": "c" * 64, "pairs": 8, "start": start, "end": end}}


UNTRAINED = scored(0.5, 0.25, -1.0)


def drawn(monkeypatch, tmp_path, *folders):
    """The figure that is saved."""
    figures = saved_figures(monkeypatch)
    compared(*folders, output=tmp_path / "drawn")
    assert (tmp_path / "drawn" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return figures[0]
