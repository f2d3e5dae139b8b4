"""How a text table is written: delimiter, quotes, encoding, and whether its first line is a header.

The parser takes UTF-8 and delimiters of one character; `plain_text` makes that of what has others.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cdp_torchrec.data.prepare.tables import check_names
from cdp_torchrec.data.schema import DatasetError

DELIMITERS = (",", "\t", ";", "|", "::", " ")
"""Those that logs have; errors look for them."""
_ONE_CHARACTER = "\x1f"  # ASCII's own delimiter of cells, which no log of text has
_READ_BYTES = 1 << 20
_NUMBER = re.compile(r"\s*-?[0-9]+([.][0-9]+)?\s*")


@dataclass(frozen=True)
class CsvFormat:
    """How a text table is written."""

    delimiter: str = ","
    """Between cells; may have several characters where nothing is quoted."""
    names: tuple[str, ...] | None = None
    """Columns of a file that has no header; None: they stand in its first line."""
    quote: str | None = '"'
    """Around cells that hold a delimiter; None: a quotation mark is a character like others."""
    encoding: str = "utf-8"
    """Name of a codec of Python."""
    missing: tuple[str, ...] = ()
    """Cells that stand for nothing, such as NULL; an empty one always does."""

    @property
    def parsed_delimiter(self) -> str:
        """The delimiter in what `plain_text` gives."""
        return self.delimiter if len(self.delimiter) == 1 else _ONE_CHARACTER

    @property
    def written(self) -> str:
        """The format in words."""
        quoted = f"cells quoted by {self.quote}" if self.quote else "no cells quoted"
        return f"text in {self.encoding}, delimiter {self.delimiter!r}, {quoted}"

    def row_of(self, lines: Iterable[str]) -> str:
        """The first of some lines, with those over which a cell of it goes."""
        read = []

        def noted() -> Iterator[str]:
            for line in lines:
                read.append(line)
                yield line

        self._first(noted())
        return "".join(read)

    def cells(self, row: str) -> list[str]:
        """The cells of one row."""
        return self._first(io.StringIO(row, newline=""))

    def _first(self, lines: Iterable[str]) -> list[str]:
        if self.quote is not None and len(self.delimiter) == 1:
            return next(csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote), [])
        line = next(iter(lines), "").rstrip("\r\n")
        return line.split(self.delimiter) if line else []


def plain_text(data: IO[bytes], form: CsvFormat) -> IO[bytes]:
    """The table as UTF-8 with one character between cells.

    Raises:
        UnicodeDecodeError: when read: it is not of that encoding.
    """
    if len(form.delimiter) == 1 and codecs.lookup(form.encoding).name == "utf-8":
        return data
    return io.BufferedReader(_PlainText(data, form), _READ_BYTES)


class _PlainText(io.RawIOBase):
    def __init__(self, data: IO[bytes], form: CsvFormat) -> None:
        self._data = data
        self._form = form
        self._decoder = codecs.getincrementaldecoder(form.encoding)()
        self._rest = ""
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyrefly: ignore[bad-override]
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next().encode())
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _next(self) -> str:
        raw = self._data.read(_READ_BYTES)
        self._ended = not raw
        text = self._rest + self._decoder.decode(raw, final=self._ended)
        self._rest = ""
        if len(self._form.delimiter) == 1:
            return text
        if not self._ended:  # a delimiter may be cut in two, a line is whole
            end = text.rfind("\n") + 1
            text, self._rest = text[:end], text[end:]
        if _ONE_CHARACTER in text:
            raise csv.Error("a cell holds the control character 0x1f")
        return text.replace(self._form.delimiter, _ONE_CHARACTER)


def check_first_line(path: Path, row: str, form: CsvFormat, needed: Sequence[str]) -> None:
    """Check that the first line is, or is not, the header that it should be.

    Raises:
        DatasetError: it is not: the delimiter is another one, a needed column is missing, or a
            header stands where none is expected.
    """
    found = form.cells(row)
    if not found:
        raise DatasetError(f"{path}: the file is empty")
    if form.names is None:
        try:
            check_names(path, found, needed)
        except DatasetError as error:
            raise DatasetError(f"{error}{_hint(row, found, form)}") from None
        return
    check_names(path, form.names, needed)
    if len(found) != len(form.names):
        raise DatasetError(
            f"{path}: line 1 has {len(found)} cells, but {len(form.names)} columns are named "
            f"({', '.join(form.names)}){_hint(row, found, form)}"
        )
    same = sum(a.strip().casefold() == b.casefold() for a, b in zip(found, form.names, strict=True))
    if 2 * same >= len(found):
        raise DatasetError(
            f"{path}: line 1 is a header, but none is expected where columns are named: {found}"
        )


def _hint(row: str, found: Sequence[str], form: CsvFormat) -> str:
    """What may be the matter with a first line, in words behind an error."""
    for other in DELIMITERS:
        count = len(row.split(other))
        if len(found) == 1 and count > 1 and other != form.delimiter:
            return f"; with the delimiter {other!r} it would have {count} cells"
    if form.names is None and any(_NUMBER.fullmatch(cell) for cell in found):
        return "; it looks like a line of values: the columns of a file without a header are named"
    return ""
