"""How long work says where it stands: a bar in a terminal, a dated line now and then in a log.

with ProgressBar("train", total=400, unit="steps") as bar:
    bar.advance()
    bar.say("step 60: validation gauc 0.71")

for request in progress(requests, "parity", unit="requests"):
    ...
"""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

WIDTH = 100
"""Columns that a bar takes at most."""
LINE_EVERY_S = 5.0
"""Seconds between two lines where no bar can be drawn: in a file, or behind a launcher's pipe."""
_DATE = "%Y-%m-%d %H:%M:%S"
_SILENT_S = 2.0
"""Work that ends sooner shows nothing."""

Element = TypeVar("Element")


def stamped(line: str) -> str:
    """The line behind the local time."""
    return f"{time.strftime(_DATE)} {line}"


def date_logs(*, active: bool) -> None:
    """Let warnings be dated as all other lines and say what they are, and one rank speak for all.

    Args:
        active: whether this process speaks; others only say what went wrong.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", datefmt=_DATE)
    if not active:
        logging.getLogger("cdp_torchrec").setLevel(logging.ERROR)


class ProgressBar:
    """Counts units of work where people can see it; everything goes to standard error."""

    def __init__(
        self,
        name: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        active: bool = True,
        keep: bool = False,
    ) -> None:
        """Start counting.

        Args:
            name: of the work, such as "train".
            total: units in all; None: unknown.
            unit: what is counted, in the plural, such as "steps".
            done: units that were done before.
            active: whether this process speaks; of several ranks, the first one.
            keep: leave the bar on the screen when the work is done.
        """
        self._name = name
        self._total = total
        self._unit = unit
        self._done = self._before = done
        self._note = ""
        self._begun = 0  # units that have begun and are not done: the named one, or none
        in_terminal = sys.stderr.isatty()
        self._writes_lines = active and not in_terminal
        self._started = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            disable=not (active and in_terminal),
            ncols=min(WIDTH, shutil.get_terminal_size().columns),
            leave=keep,
            delay=_SILENT_S,
        )
        self._active = active

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._begun:
            self.advance()
        self._bar.close()

    def begin(self, name: str) -> None:
        """The unit of this name begins, and the one that began before it is done."""
        self.note(name)
        self.advance(self._begun)
        self._begun = 1

    def advance(self, units: int = 1) -> None:
        """Some more units are done."""
        self._done += units
        self._bar.update(units)
        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            print(stamped(self._line(now)), file=sys.stderr, flush=True)

    def skip(self) -> None:
        """One unit was done before: it costs no time, so it must not enter the estimate."""
        self._done += 1
        self._before += 1
        if not self._bar.disable:
            self._bar.initial += 1
        self._bar.update()

    def note(self, text: str) -> None:
        """What stands behind the count from now on, such as "loss 0.23"."""
        self._note = text
        self._bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        """Print a dated line on standard output, above the bar."""
        if self._active:
            tqdm.write(stamped(line))
            sys.stdout.flush()

    def _line(self, now: float) -> str:
        of_all = f" of {self._total:,}" if self._total else ""
        parts = [f"{self._name}: {self._done:,}{of_all} {self._unit}"]
        here = self._done - self._before
        if self._total and here:
            left = (self._total - self._done) * (now - self._started) / here
            parts += [
                f"{100 * self._done / self._total:.0f} %",
                f"{tqdm.format_interval(left)} left",
            ]
        return ", ".join([*parts, self._note] if self._note else parts)


class Stages:
    """Says what a command of minutes is doing: a dated line on standard error for each stage."""

    def __init__(self, name: str, *, total: int, active: bool = True) -> None:
        """Args: the command, the number of its stages, and whether this process speaks."""
        self._name = name
        self._total = total
        self._begun = 0
        self._active = active

    def begin(self, what: str) -> None:
        """The next stage begins; what it does, in words."""
        self._begun += 1
        if self._active:
            line = f"{self._name} {self._begun}/{self._total}: {what}"
            tqdm.write(stamped(line), file=sys.stderr)
            sys.stderr.flush()


def progress(
    elements: Iterable[Element],
    name: str,
    *,
    unit: str,
    total: int | None = None,
    active: bool = True,
) -> Iterator[Element]:
    """Pass elements on and count those that are done with.

    Args:
        elements: the work.
        name: as in ProgressBar.
        unit: as in ProgressBar.
        total: number of elements, where `elements` has no length.
        active: as in ProgressBar.
    """
    if total is None and isinstance(elements, Sized):
        total = len(elements)
    with ProgressBar(name, total=total, unit=unit, active=active) as bar:
        for element in elements:
            yield element
            bar.advance()
