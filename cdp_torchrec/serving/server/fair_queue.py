"""An order in which nobody waits long because others ask for much."""

import heapq
from collections import Counter
from typing import Generic, NamedTuple, TypeVar

from cdp_torchrec.serving.server.errors import QueueFullError, StoppingError

T = TypeVar("T")


class Client(NamedTuple):
    """Who asks."""

    host: str
    connection: int
    """Its port."""


NOBODY = Client("", 0)


class _Entry(NamedTuple):
    finish: float
    number: int
    client: Client


class FairQueue(Generic[T]):
    """Self-clocked fair queueing (Golestani 1994): cheap items pass dear ones that came earlier.

    Every item is stamped with the work that would have been done when it is, if all connections
    were served at the same time, and the smallest stamp goes first. The stamps of a host grow with
    the number of its waiting items, so that a host does not get more by opening more connections.
    Nothing waits for ever: stamps only grow. Not safe for threads.
    """

    def __init__(self, *, most: int) -> None:
        """An empty queue.

        Args:
            most: items that may wait.
        """
        self._most = most
        self.is_closed = False
        """Whether nothing is appended any more."""
        self._heap: list[tuple[_Entry, T]] = []
        self._waiting: Counter[str] = Counter()
        self._last: dict[Client, float] = {}
        self._now = 0.0
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: T, *, client: Client, cost: float) -> None:
        """Append an item.

        Args:
            item: what waits.
            client: who waits; items of one client keep their order.
            cost: how much work it is, in any unit.

        Raises:
            QueueFullError: too many are waiting.
            StoppingError: after `close`.
        """
        if self.is_closed:
            raise StoppingError("the server is stopping")
        if len(self) >= self._most:
            raise QueueFullError(f"{len(self)} requests are waiting")
        self._waiting[client.host] += 1
        start = max(self._now, self._last.get(client, 0.0))
        finish = start + cost * self._waiting[client.host]
        self._last[client] = finish
        self._number += 1
        heapq.heappush(self._heap, (_Entry(finish, self._number, client), item))

    def close(self) -> None:
        """Append nothing any more; what waits stays."""
        self.is_closed = True

    def first(self) -> T:
        """The item that goes next."""
        return self._heap[0][1]

    def pop(self) -> T:
        """Take it."""
        entry, item = heapq.heappop(self._heap)
        self._now = entry.finish
        self._waiting[entry.client.host] -= 1
        if not self._waiting[entry.client.host]:
            del self._waiting[entry.client.host]
        if not self._heap:
            self._last.clear()
            self._now = 0.0
        elif len(self._last) > 2 * len(self._heap) + 64:
            self._last = {c: t for c, t in self._last.items() if t > self._now}
        return item
