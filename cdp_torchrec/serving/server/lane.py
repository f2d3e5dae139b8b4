"""Threads for the work that grows with a request, which the event loop must not do."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from cdp_torchrec.serving.server.fair_queue import Client, FairQueue

R = TypeVar("R")


@dataclass(frozen=True)
class _Task:
    work: Callable[[], Any]
    result: Future[Any]

    def run(self) -> None:
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.work())
        except BaseException as error:
            self.result.set_exception(error)


class Lane:
    """One thread, and a bounded fair queue before it."""

    def __init__(self, name: str, *, queue_length: int) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            queue_length: tasks that may wait.
        """
        self._tasks: FairQueue[_Task] = FairQueue(most=queue_length)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], R], *, client: Client, cost: float) -> Future[R]:
        """Queue a task; a cancelled future is not begun.

        Raises:
            QueueFullError: too many are waiting.
            StoppingError: after `close`.
        """
        result: Future[R] = Future()
        with self._changed:
            self._tasks.push(_Task(work, result), client=client, cost=cost)
            self._changed.notify()
        return result

    def close(self) -> None:
        """Do what is queued, and end the thread."""
        with self._changed:
            self._tasks.close()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks:
                    if self._tasks.is_closed:
                        return
                    self._changed.wait()
                task = self._tasks.pop()
            task.run()
            del task  # a body of megabytes, until the next one comes
