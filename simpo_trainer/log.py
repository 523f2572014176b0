"""Logging: one package logger that prints on the main process, unless the application configures it."""

import logging
import os
import sys


class _StderrHandler(logging.StreamHandler):
    """Writes to the current `sys.stderr`, so that captured and redirected output works."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def get_logger(name: str) -> logging.Logger:
    """Returns the logger `name` below the package's logger, which prints INFO and above as plain lines on rank 0.

    Other ranks print only errors, so that N processes do not print the same line N times.
    """
    package = logging.getLogger("simpo_trainer")
    if not package.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(levelname_prefix)s%(message)s"))
        handler.addFilter(_mark_level)
        package.addHandler(handler)
        package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    return logging.getLogger(name)


def _mark_level(record: logging.LogRecord) -> bool:
    """Set the prefix of a record, "warning: " or "error: ", or none for information; every record is printed."""
    record.levelname_prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
    return True
