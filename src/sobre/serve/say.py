"""A line for whoever started the server."""

import sys
from contextlib import suppress


def say(line: str) -> None:
    """On standard error. A log that cannot be written, as on a full disk, is no reason to stop answering."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
