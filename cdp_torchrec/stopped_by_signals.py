"""Signals that end a command after it has cleared up, with a line that says what is there."""

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

logger = logging.getLogger(__name__)

_STOPPED_BY = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def starting_children() -> Generator[None]:
    """Around the start of processes: they never hear the signals, unless they ask for them.

    Terminals and schedulers send them to all processes of a job at once, and a child that still
    imports its modules would end with a traceback. This process hears them when the block ends:
    then it knows its children and can end them.
    """
    resource_tracker.ensure_running()  # whose start lets them through again
    heard: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in _STOPPED_BY} if is_main else {}
    for number in handlers:
        signal.signal(number, lambda number, frame: heard.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPED_BY)  # which children inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


@contextmanager
def stopped_by_signals(outcome: str) -> Generator[None]:
    """Without a handler of somebody else, let the signals end the block as an exception.

    Args:
        outcome: what is there then, for the last line.
    """
    stops: list[SystemExit | KeyboardInterrupt] = []

    def stop(number: int, frame: FrameType | None) -> None:
        logger.warning("stopping: %s", outcome)
        interrupted = number == signal.SIGINT
        stops.append(KeyboardInterrupt() if interrupted else SystemExit(128 + number))
        raise stops[0]

    previous = {number: signal.getsignal(number) for number in _STOPPED_BY}
    if threading.current_thread() is not threading.main_thread():
        previous = {}
    free = [number for number, handler in previous.items() if handler in _DEFAULT]
    for number in free:
        signal.signal(number, stop)
    try:
        yield
    except Exception:
        if stops:  # raised while the engine ran, which makes an error of its own of it
            raise stops[0] from None
        raise
    finally:
        for number in free:
            signal.signal(number, previous[number])
