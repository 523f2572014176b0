"""The command `simpo`, of which one process fails at its third step; started by `test_ranks.py`.

FAILS in the environment says how and which: `bug-1` is a KeyError in rank 1, `mistake-0` a SimPOError in rank 0.
"""

import os

from transformers import TrainerCallback

from simpo_trainer.cli import main
from simpo_trainer.errors import SimPOError
from simpo_trainer.run import launcher
from simpo_trainer.train.run_trainer import RunTrainer

KIND, RANK = os.environ["FAILS"].split("-")
ERRORS = {"bug": KeyError("no such thing"), "mistake": SimPOError("row 3 is bad. Change it.")}


class Fails(TrainerCallback):
    """Fails in one process alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and os.environ["RANK"] == RANK:
            raise ERRORS[KIND]


def failing(attach):
    def attach_more(trainer, *reports):
        attach(trainer, *reports)
        trainer.add_callback(Fails())

    return attach_more


def launching_this(words):
    def replaced(*args):
        found = words(*args)
        place = found.index("--module")
        return [*found[:place], __file__, *found[place + 2 :]]

    return replaced


if __name__ == "__main__":
    RunTrainer._attach = failing(RunTrainer._attach)
    launcher.launch_words = launching_this(launcher.launch_words)
    main()
