"""The quickstart's first and last step: `prepare` a toy world to train on, `compare` the model before and after.

Between them stands `simpo train recipes/quickstart.yaml`. `make quickstart` runs all three.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from simpo_trainer.errors import SimPOError
from simpo_trainer.quickstart.compare import compare
from simpo_trainer.quickstart.world import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "compare"))
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    arguments = parser.parse_args()
    disable_progress_bar()  # loading a million weights takes no time
    try:
        if arguments.step == "prepare":
            prepare(arguments.folder)
        else:
            compare(arguments.folder, Console())
    except SimPOError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
