"""docs/interruptions.md has the summary of the table that `make test-faults` writes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_summary_is_that_of_the_table():
    table = (ROOT / "tests" / "faults" / "results.md").read_text()
    summary = table[table.index("| kind |") : table.index("| case |")].strip()
    assert summary in (ROOT / "docs" / "interruptions.md").read_text()
