"""Logging: one package logger that speaks on the main process only, unless the application configures its own."""

import logging
import os
import sys


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment, so that captured and redirected output is respected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def get_logger(name: str) -> logging.Logger:
    """The logger called `name` under the package's own, which prints INFO and above as plain lines on rank 0.

    Other ranks print errors only: N processes saying one thing N times helps nobody.
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
    """Information is printed bare; warnings and errors say what they are."""
    record.levelname_prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
    return True
