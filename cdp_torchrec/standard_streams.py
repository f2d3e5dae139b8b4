"""Standard output and standard error that nothing can stop: no terminal, no reader, no encoding."""

import os
import sys
from typing import TextIO


def prepare_streams() -> None:
    """Make both able to take every text; for the start of a process.

    What an encoding lacks is shown as an escape. A stream that is closed swallows its text, and
    keeps its descriptor, which the next file that is opened would get otherwise.
    """
    sys.stdout = _prepared(sys.stdout, descriptor=1)
    sys.stderr = _prepared(sys.stderr, descriptor=2)


def give_up(stream: TextIO) -> None:
    """Let everything that a stream still holds, and will get, vanish."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_streams() -> None:
    """Bring out what both hold; where that cannot be written, it vanishes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            give_up(stream)


def _prepared(stream: TextIO | None, *, descriptor: int) -> TextIO:
    if stream is None:
        opened = os.open(os.devnull, os.O_WRONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        return open(descriptor, "w", errors="backslashreplace", closefd=False)
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:  # else somebody has put another stream in its place
        reconfigure(errors="backslashreplace")
    return stream
