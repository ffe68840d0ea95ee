"""The error that the demo shows without a traceback."""


class DemoError(Exception):
    """The demo cannot go on; the message says what was found and what to do."""
