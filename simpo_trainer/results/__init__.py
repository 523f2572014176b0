"""The results of runs as curves, comparisons, tables and pictures."""
