"""docs/quickstart.ipynb: clean, in the notebook format, and its cells run from top to bottom.

The cells run as plain Python, because a kernel would add thirty packages for this test alone.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TEXT = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")

# Shorter than for a reader: the run is to work, not to end well.
SHORT = {
    "warm_up_steps=300": "warm_up_steps=30",
    '"max_steps": 60': '"max_steps": 12',
    '"eval_steps": 20': '"eval_steps": 6',
    ".head(200)": ".head(50)",
}

RUNNER = """
import importlib.util, json, sys, types
if importlib.util.find_spec("IPython") is None:
    display = types.ModuleType("IPython.display")
    display.Image = lambda file: open(file, "rb").read()
    sys.modules["IPython.display"] = display  # alone: matplotlib asks a module IPython for its version
names = {}
for cell in json.load(sys.stdin):
    exec(cell, names)
history = names["simpo"].state.log_history
found = {
    "margins": [entry["eval_logps/margins"] for entry in history if "eval_logps/margins" in entry],
    "losses": [names[run].args.loss_type for run in ("simpo", "ipo")],
    "same": names["saved"].state_dict().keys() == names["simpo"].model.state_dict().keys()
    and all((weight == names["simpo"].model.state_dict()[name]).all().item()
            for name, weight in names["saved"].state_dict().items()),
    "right": names["right"],
    "changed": len(names["prompts"][names["prompts"]["before"] != names["prompts"]["after"]]),
}
print("found " + json.dumps(found))
"""


def test_it_has_the_form_of_a_notebook():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in NOTEBOOK["cells"]:
        fields = {"cell_type", "id", "metadata", "source"}
        assert cell.keys() == (fields | {"execution_count", "outputs"} if cell["cell_type"] == "code" else fields)
        lines = cell["source"]
        assert lines and all(line.endswith("\n") for line in lines[:-1]) and not lines[-1].endswith("\n")


def test_no_output_is_stored():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"], cell["metadata"]) for cell in cells] == [([], None, {})] * len(
        cells
    )


def test_documents_that_it_names_exist():
    named = re.findall(r"[\w/-]+\.md", TEXT)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_its_cells_run(tmp_path):
    cells = CODE
    for usual, short in SHORT.items():
        assert any(usual in cell for cell in cells)
        cells = [cell.replace(usual, short) for cell in cells]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(cells),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1].removeprefix("found "))
    assert len(found["margins"]) >= 2 and found["margins"][-1] > found["margins"][0]
    assert found["losses"] == ["sigmoid", "ipo"]
    assert found["same"], "the saved model is another one than was trained"
    assert found["right"].keys() == {"before", "after"} and found["changed"] > 0
    assert (tmp_path / "runs/notebook/simpo/training_curves.png").stat().st_size > 10_000
