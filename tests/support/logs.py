"""Warnings that the package logged."""

import logging

from pytest import LogCaptureFixture


def warnings(caplog: LogCaptureFixture) -> list[str]:
    """Returns the texts of all warnings and errors."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
