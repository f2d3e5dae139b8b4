"""While children are started, signals wait, and children never hear them."""

import multiprocessing
import signal
import sys

import pytest

from cdp_torchrec.stopped_by_signals import starting_children, stopped_by_signals


def send_itself(number: int) -> None:
    signal.raise_signal(number)
    sys.exit(0 if signal.sigpending() == {number} else "did not wait")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_child_does_not_hear_the_signal(number: signal.Signals) -> None:
    child = multiprocessing.get_context("spawn").Process(target=send_itself, args=(number,))
    with starting_children():
        child.start()
    child.join()
    assert child.exitcode == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_this_process_hears_it_when_the_children_have_started(
    number: signal.Signals, end: type[BaseException]
) -> None:
    done: list[str] = []
    before = signal.getsignal(number)
    with pytest.raises(end), stopped_by_signals("nothing"):
        with starting_children():
            signal.raise_signal(number)
            done.append("started")
        done.append("went on")
    assert done == ["started"]
    assert signal.getsignal(number) == before
