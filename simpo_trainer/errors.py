"""The error for anything a user can put right."""


class SimPOError(ValueError):
    """A mistake in settings, data or environment: the message says what was found, what is needed, what to change.

    The command line prints the message alone; a traceback is kept for defects of the software.
    """
