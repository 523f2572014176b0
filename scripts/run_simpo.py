"""Entry point for launchers: `accelerate launch [...] scripts/run_simpo.py RECIPE [--key value ...]`, or torchrun.

The same as `simpo train RECIPE [--key value ...]`, which needs no launcher for a single process.
"""

import sys

from simpo_trainer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
