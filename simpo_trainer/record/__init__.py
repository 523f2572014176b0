"""The record of a run in its folder, and reading it back."""
