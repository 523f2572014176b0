"""Looking at runs: curves, comparisons, tables and pictures."""
