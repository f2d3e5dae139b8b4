"""Standard output and standard error that nothing can stop: no terminal, no reader, no encoding."""

import io
import os
import sys
from typing import Any, TextIO


def prepare_streams() -> None:
    """Make both able to take every text; for the start of a process.

    What an encoding lacks is shown as an escape. A stream that is closed swallows its text, and
    keeps its descriptor, which the next file that is opened would get otherwise. So does one whose
    reader has left: work that takes hours does not end because `head` has seen enough.
    """
    sys.stdout = _prepared(sys.stdout, descriptor=1)
    sys.stderr = _prepared(sys.stderr, descriptor=2)


def give_up(stream: TextIO | io.FileIO) -> None:
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
    if type(stream) is not io.TextIOWrapper:
        return stream  # somebody has put another one in its place
    stream.reconfigure(errors="backslashreplace")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unread(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Unread(io.FileIO):
    """A descriptor that takes on when nobody reads any more."""

    def write(self, content: Any) -> int:
        """As of any file; what breaks a pipe vanishes, and all that follows."""
        try:
            return super().write(content)
        except BrokenPipeError:
            give_up(self)
            return super().write(content)
