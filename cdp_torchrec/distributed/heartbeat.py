"""A rank that says nothing any more: it is stopped, swapped out, or cut off from the others.

Each rank counts in the store that the ranks met at, on a thread of its own, so that it goes on
through long computations. Rank 0 listens to all, and all listen to rank 0. Without that, the others
would wait in a collective until its timeout, and could not tell for whom.
"""

import contextlib
import math
import os
import platform
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

_LONGEST_PAUSE_S = 5.0
_FEWEST_PAUSES = 10
"""In the silence that makes a rank lost."""
_GONE = "gone"
"""Instead of a count: the rank has done its work."""


@dataclass(frozen=True)
class LostRank:
    """A rank that has been silent for too long."""

    rank: int
    pid: int
    launcher: int
    """Process id of its parent."""
    host: str
    silence_s: float

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (process {self.pid} on {self.host}) has been silent for "
            f"{self.silence_s:.0f} s: it is stopped, swapped out or cut off from the others; "
            "ranks.silence_limit_s says how long that may last"
        )

    def kill(self) -> None:
        """End it, if it is of this rank's launcher, which would wait for a stopped process."""
        if (self.launcher, self.host) == (os.getppid(), platform.node()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Heartbeat:
    """Shows the other ranks that this one is alive, and misses those that are not."""

    def __init__(
        self,
        store: "Store",
        *,
        rank: int,
        world_size: int,
        limit_s: float,
        lost: Callable[[LostRank], None],
    ) -> None:
        """Show up; when all ranks have, they may `start`.

        Args:
            store: where the ranks meet; used over a connection of the heartbeat's own.
            rank: this rank.
            world_size: number of ranks.
            limit_s: how long a rank may be silent, in seconds.
            lost: called once, on a thread of the heartbeat, with the first rank that is lost.
        """
        self._store = store.clone()  # pyrefly: ignore[missing-attribute]  # not in its stubs
        self._rank = rank
        self._world_size = world_size
        self._others = list(range(1, world_size)) if rank == 0 else [0]
        self._limit_s = limit_s
        self._lost = lost
        self._pause_s = min(limit_s / _FEWEST_PAUSES, _LONGEST_PAUSE_S)
        self._heard: dict[int, str] = {}
        self._left = threading.Event()
        self._threads: list[threading.Thread] = []
        self._store.set(f"who/{rank}", f"{os.getpid()} {os.getppid()} {platform.node()}")
        self._store.set(f"beat/{rank}", "0")

    def wait_for_all(self, timeout: timedelta) -> list[int]:
        """Wait until all ranks have shown up.

        Returns:
            Those that have not, after all that time.
        """
        from torch.distributed import DistStoreError

        shown = [f"who/{rank}" for rank in range(self._world_size)]
        try:
            self._store.wait(shown, timeout)
        except DistStoreError:
            return [rank for rank, key in enumerate(shown) if not self._store.check([key])]
        return []

    def start(self) -> None:
        """Begin to count and to listen."""
        who = self._store.multi_get([f"who/{other}" for other in self._others])
        self._who = {o: known.decode().split() for o, known in zip(self._others, who, strict=True)}
        for work in (self._count, self._listen):
            thread = threading.Thread(target=work, name="heartbeat", daemon=True)
            self._threads.append(thread)
            thread.start()

    def leave(self) -> None:
        """Nobody waits for this rank any more, and it waits for nobody.

        Not for a thread in the store's C++ code either, which would abort the process if it came
        back after the interpreter has ended.
        """
        if not self._left.is_set():
            self._left.set()
            with contextlib.suppress(RuntimeError):  # the store may have ended
                self._store.set(f"beat/{self._rank}", _GONE)
        for thread in self._threads:
            thread.join()

    def _count(self) -> None:
        """Count, and read what the others have counted."""
        beats = [f"beat/{other}" for other in self._others]
        count = 0
        try:
            while not self._left.wait(self._pause_s):
                count += 1
                self._store.set(f"beat/{self._rank}", str(count))
                found = self._store.multi_get(beats)
                self._heard = {o: b.decode() for o, b in zip(self._others, found, strict=True)}
        except RuntimeError:
            # The store has ended, with rank 0 or with the launcher, which ends this rank, too.
            self._left.set()

    def _listen(self) -> None:
        """Measure how long nothing new has been heard.

        In pauses of this thread, not by a clock: after the whole job was stopped, none is missed. A
        store that does not answer is one that rank 0 keeps, and silences all.
        """
        last: dict[int, str] = {}
        silent = dict.fromkeys(self._others, 0)
        while not self._left.wait(self._pause_s):
            heard = self._heard
            for other in self._others:
                beat = heard.get(other)
                same = beat == last.get(other) and beat != _GONE
                silent[other] = silent[other] + 1 if same else 0
            last = heard
            longest = max(self._others, key=lambda other: silent[other])
            if silent[longest] >= math.ceil(self._limit_s / self._pause_s):
                self._left.set()
                pid, launcher, host = self._who[longest]
                silence_s = silent[longest] * self._pause_s
                self._lost(LostRank(longest, int(pid), int(launcher), host, silence_s))
