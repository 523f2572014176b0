"""The command line `simpo`, one command a file."""
