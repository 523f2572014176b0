"""The command line `simpo`, one command a file."""

from .app import main

__all__ = ["main"]
