"""Five cells of the matrix, so that each change of the code meets it; `make test-matrix` runs all of them."""

import pytest

from engines import missing
from matrix_cells import MODELS, Cell
from matrix_runs import check, make_reference, write_inputs

pytestmark = pytest.mark.slow

CELLS = [
    Cell("LoRA, head and embeddings saved", "FSDP2", "on", "packed"),
    Cell("QLoRA, 4 bits", "FSDP2", "off", "packed"),
    Cell("full", "ZeRO-2", "on", "shared_prefix"),
    Cell("LoRA on the head", "ZeRO-3", "off", "padded"),
    Cell("LoRA", "ZeRO-3, zero.Init", "on", "packed"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cell_ends_as_one_process_does(tmp_path, cell):
    if package := missing(cell.kind):
        pytest.skip(f"{package} is not installed: make install-scale")
    if "load_in_4bit" in MODELS[cell.model]:
        pytest.importorskip("bitsandbytes", reason="make install-scale")
    write_inputs(tmp_path / "inputs")
    make_reference(tmp_path / "inputs", cell.model)
    assert check(cell, tmp_path / "inputs", "out").keys() >= {"metrics", "weights", "resumed weights"}
