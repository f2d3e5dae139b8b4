"""The pages of the documentation, their fenced blocks, and the commands in those."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for folder in ("cdp_torchrec", "configs", "launch", "tests")
        for page in (ROOT / folder).rglob("README.md")
    ),
]
LANGUAGES = ("bash", "python", "toml", "json", "diff", "text")
NOTES = ("not run", "run with", "file", "settings of")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- ([a-z ]+): ((?:(?!-->).)*?) -->\n\Z", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a shell block."""

    place: str
    text: str
    """As a shell takes it, on one line or several."""

    @property
    def words(self) -> list[str]:
        """Its words, without comments."""
        return shlex.split(self.text, comments=True)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    """Of the fence."""
    language: str
    text: str
    note: tuple[str, str] | None
    """Kind and value of the comment right before it."""

    @property
    def place(self) -> str:
        """Page and line, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @staticmethod
    def words_of(text: str) -> list[str]:
        """Words of a comment, as a shell takes them."""
        return shlex.split(text)

    def value(self, kind: str) -> str | None:
        """Of the comment, if it is of this kind."""
        return self.note[1] if self.note and self.note[0] == kind else None

    @property
    def is_executed(self) -> bool:
        """Whether it is run, applied, written to a file that is then used, or loaded."""
        return self.language != "text" and self.value("not run") is None

    def commands(self) -> Iterator[Command]:
        """The commands of a shell block: lines, put together where one goes on in the next."""
        waiting, first = "", 0
        for number, line in enumerate(self.text.splitlines(), start=self.line + 1):
            first = first if waiting else number
            waiting += line + "\n"
            if not line.endswith("\\") and _is_closed(waiting):
                place = f"{self.page.relative_to(ROOT)}:{first}"
                if shlex.split(waiting, comments=True):
                    yield Command(place, waiting.strip())
                waiting = ""
        assert not waiting, f"{self.place}: the last command is not complete"


def _is_closed(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    blocks = []
    for fence in _FENCE.finditer(text):
        note = _NOTE.search(text, 0, fence.start())
        blocks.append(
            Block(
                page=page,
                line=text.count("\n", 0, fence.start()) + 1,
                language=fence[1],
                text=fence[2],
                note=(note[1], note[2]) if note else None,
            )
        )
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
