"""Signals that end a command after it has cleared up, with a line that says what is there."""

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_STOPPED_BY = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)


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
