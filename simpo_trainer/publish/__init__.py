"""Sharing a run: its model card and the push to the Hub."""
