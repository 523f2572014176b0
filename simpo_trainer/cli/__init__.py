"""The command line `simpo`: one command in each file."""

from .app import main

__all__ = ["main"]
