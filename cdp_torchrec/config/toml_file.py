"""One TOML file, whatever may stand under its name: a table, or one line that says why not."""

import copy
import functools
import tomllib
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
"""Of a configuration, which people write; anything longer is another file."""
MAX_DEPTH = 32
"""Tables and lists inside each other."""
_MOST_REMEMBERED = 256  # the hundreds of cells of a table name the same few layers


class UnreadableError(ValueError):
    """Why a file or a value cannot be read."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no TOML, or no file that may be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise UnreadableError("cannot be read: not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UnreadableError(f"cannot be read: longer than {MAX_BYTES >> 20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"cannot be read: not UTF-8: {error}") from error
    try:
        return parse_toml(text)
    except UnreadableError as error:
        raise UnreadableError(f"not valid TOML: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a text describes.

    Raises:
        UnreadableError: it describes none.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _parsed(text: str) -> dict[str, Any]:
    """As `parse_toml`, for readers that change nothing in it."""
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise UnreadableError(_TOO_DEEP) from None
    except ValueError as error:  # also of the conversion of a number with thousands of digits
        raise UnreadableError(str(error).partition("; use sys.")[0]) from error
    if _is_deep(table):
        raise UnreadableError(_TOO_DEEP)
    return table


_TOO_DEEP = f"more than {MAX_DEPTH} tables or lists inside each other"


def _is_deep(table: dict[str, Any]) -> bool:
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)
