"""Checkpoints of a run: what one must hold before a run goes on from it."""

from pathlib import Path

from .errors import SimPOError

# Written by transformers in one process or under DDP; FSDP and DeepSpeed write folders of their own.
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "pytorch_model_fsdp*", "global_step*")


def check_resumable(checkpoint: str | Path) -> None:
    """Refuse a checkpoint from which training would go on otherwise than it stopped.

    Args:
        checkpoint: a `checkpoint-N` folder.

    Raises:
        SimPOError: it is no checkpoint, or holds no optimiser state, which would silently start anew.
    """
    folder = Path(checkpoint)
    if not (folder / "trainer_state.json").is_file():
        raise SimPOError(
            f"{folder} is not a checkpoint: it has no trainer_state.json. Name a checkpoint-N folder of the run."
        )
    if not any(next(folder.glob(pattern), None) for pattern in _OPTIMIZER):
        raise SimPOError(
            f"{folder} holds no optimiser state (was it saved with save_only_model?): training would go on with a fresh "
            "optimiser, not as it stopped. Resume from a full checkpoint, or start a new run with the folder as "
            "model_name_or_path."
        )
