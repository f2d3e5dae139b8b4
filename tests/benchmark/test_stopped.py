"""A benchmark that is stopped ends its children, then removes its files, and says one line."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.benchmark.lingering import CHILD
from tests.paths import ROOT
from tests.processes import is_running, wait_until

_PATIENCE_S = 120.0


@pytest.fixture
def lingering(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A benchmark, the leader of its process group, and the process id of its child at work."""
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmark.lingering", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: job.poll() is not None or list(tmp_path.glob(f"*/{CHILD}")))
    (child,) = tmp_path.glob(f"*/{CHILD}")
    yield job, int(child.read_text())
    job.kill()
    job.communicate()


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)],
    ids=["to it", "to its group"],
)
def test_a_signal_ends_the_child_and_leaves_nothing_but_one_line(
    send: Callable[[int, int], None],
    number: signal.Signals,
    lingering: tuple["subprocess.Popen[str]", int],
    tmp_path: Path,
) -> None:
    job, child = lingering
    send(job.pid, number)
    out, err = job.communicate(timeout=_PATIENCE_S)
    assert job.returncode == 128 + number
    assert not is_running(child)
    assert list(tmp_path.iterdir()) == []
    assert out == ""
    assert re.fullmatch(r"\S+ \S+ WARNING: stopping: .*prepare.*\n", err)


def test_a_child_ends_with_a_benchmark_that_was_killed(
    lingering: tuple["subprocess.Popen[str]", int],
) -> None:
    job, child = lingering
    job.kill()
    wait_until(lambda: not is_running(child))
