"""Answers that are the same for everybody who waits for one."""

import asyncio
import time
from collections.abc import Callable

_SHARE = 20
"""Making them takes one part in so many of the event loop's time, however many ask."""


class Scrapes:
    """Texts that are made on the event loop after they were asked for, not one for each request."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        """Args: what makes a text."""
        self._make = make
        self._next: asyncio.Task[bytes] | None = None
        self._not_before = 0.0

    async def text(self) -> bytes:
        """The next text."""
        if self._next is None:
            self._next = asyncio.create_task(self._make_next())
        return await asyncio.shield(self._next)  # others wait for it when this client is gone

    async def _make_next(self) -> bytes:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        self._next = None
        start = time.monotonic()
        try:
            return self._make()
        finally:
            now = time.monotonic()
            self._not_before = now + (_SHARE - 1) * (now - start)
