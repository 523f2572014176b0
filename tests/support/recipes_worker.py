"""Runs recipes as one process of several, one after the other, which saves the start of processes for each.

Arguments: a JSON file with the recipe and the overrides of each run.
"""

import json
import sys
from pathlib import Path

from simpo_trainer.recipe import load_recipe
from simpo_trainer.run import run

if __name__ == "__main__":
    for recipe, overrides in json.loads(Path(sys.argv[1]).read_text()):
        run(load_recipe(recipe, overrides))
