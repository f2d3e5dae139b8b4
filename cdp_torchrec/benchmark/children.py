"""Processes of a benchmark: none of them outlives it, and signals are the benchmark's affair."""

import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from cdp_torchrec.distributed.launcher import kill_with_parent
from cdp_torchrec.stopped_by_signals import starting_children
from cdp_torchrec.user_error import UserError


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A fresh process that calls a function; it ends with this one, and Ctrl-C does not reach it.

    Args:
        function: a function of a module's top level.
        arguments: its arguments, which can be pickled.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(function, arguments), daemon=True
    )
    with starting_children():
        process.start()
    return process


def _run(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    kill_with_parent(parent.pid)
    # By which the benchmark ends it, and which ends it without a word.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        function(*arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
