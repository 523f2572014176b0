"""The figures of docs/scaling.md are those of its formulas."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
WEIGHTS = {"8B": 8.03e9, "70B": 70.55e9}
# Bytes a weight that a card receives for one micro-batch.
BYTES = {"FSDP2": 2 + 2 + 4, "ZeRO-3": 2 + 2 + 2, "LoRA": 2 + 2}


def gigabytes(bytes_a_weight: float, weights: float, cards: int) -> str:
    return f"{bytes_a_weight * weights * (cards - 1) / cards / 1e9:.0f}"


def test_the_table_of_bytes_is_that_of_the_formulas():
    rows = re.findall(r"^\| (\S*).*? ?\| (8|64|512) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    model = ""
    for name, cards, *figures in rows:
        model = name or model
        assert figures == [gigabytes(each, WEIGHTS[model], int(cards)) for each in BYTES.values()]


def test_the_figures_in_the_text():
    assert f"an 8B model {16 * WEIGHTS['8B'] / 8 / 1e9:.1f} GB on 8 cards" in PAGE
    assert (
        f"a 70B model {16 * WEIGHTS['70B'] / 8 / 1e9:.0f} GB on 8 and\n{16 * WEIGHTS['70B'] / 64 / 1e9:.1f} GB on 64"
        in PAGE
    )
    assert f"{16 * WEIGHTS['70B'] / 32 / 1e9:.0f} GB a card on 32" in PAGE
    assert "280 GB at 70B" in PAGE and round(4 * WEIGHTS["70B"] / 1e9, -1) == 280
    assert f"{4 * WEIGHTS['8B'] / 1e9:.0f} GB at 8B\nand {4 * WEIGHTS['70B'] / 1e9:.0f} GB at 70B" in PAGE
    assert f"({12 * WEIGHTS['70B'] / 1e9:.0f} GB at 70B)" in PAGE
    assert f"{gigabytes(2 * 4, WEIGHTS['8B'], 64)} GB for a full 8B run on 64 cards" in PAGE
    assert 4e14 / 450e9 // 100 == 8 and f"{4e14 / 50e9:,.0f} between machines" in PAGE


def test_the_accumulation_makes_the_global_batch():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    assert all(int(cards) * int(micro) * int(accumulation) == 128 for cards, micro, accumulation in rows)
