"""Trains the quickstart's model with several losses and compares the runs; needs `scripts/quickstart.py prepare`.

`make compare-losses` runs both; LOSSES='sigmoid simper' names others.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from simpo_trainer.errors import SimPOError
from simpo_trainer.quickstart.losses import LOSSES, train_and_compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "losses", nargs="*", default=LOSSES, metavar="LOSS", help=f"loss_type, or dpo; default: {' '.join(LOSSES)}"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        train_and_compare(arguments.folder, arguments.losses, Console())
    except SimPOError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
