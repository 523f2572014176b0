"""The model card of a run and its push to the Hub."""
