"""Faults of a job of several ranks under its launcher."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.chaos.command import LIMIT_S, Ended
from tests.chaos.outcome import Outcome, Verdict
from tests.chaos.training_faults import judge
from tests.chaos.world import World, result_of, train, train_arguments

_GONE_WITHIN_S = 60.0


def dead_launcher(world: World, scratch: Path, random: Random) -> Outcome:
    """SIGKILL of the launcher: its ranks end too, and the same line goes on."""
    job = _Job(world, scratch)
    ranks = job.ranks_at_a_random_moment(random)
    job.launcher.kill()
    deadline = time.monotonic() + _GONE_WITHIN_S
    while (left := [rank for rank in ranks if _is_alive(rank)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    job.end(left)
    if left:
        return Outcome(Verdict.HANG, f"{len(left)} ranks live on without their launcher")
    return _goes_on(world, scratch, "dead launcher")


def stopped_rank(world: World, scratch: Path, random: Random) -> Outcome:
    """SIGSTOP of a rank: the job ends with a message, and the same line goes on."""
    job = _Job(world, scratch, "ranks.silence_limit_s=10", "ranks.collective_timeout_s=60")
    ranks = job.ranks_at_a_random_moment(random)
    stopped = random.choice(ranks)
    with suppress(ProcessLookupError):  # the job may be at its end
        os.kill(stopped, signal.SIGSTOP)
    ended = job.wait()
    job.end(ranks)
    if ended.code is None:
        return Outcome(Verdict.HANG, f"a stopped rank: {ended.last_line}")
    # The launcher ends with a traceback of its own whenever a rank has failed.
    if "cdp_torchrec/" in ended.output.split("Traceback (most recent call last)", 1)[-1]:
        return Outcome(Verdict.TRACEBACK, f"a stopped rank: {ended.last_line}")
    return _goes_on(world, scratch, "stopped rank")


class _Job:
    """A training on two ranks under torchrun."""

    def __init__(self, world: World, scratch: Path, *settings: str) -> None:
        self._output = scratch / "launcher-output"
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        line += ["-m", "cdp_torchrec.commands.train"]
        line += [*train_arguments(world.dataset, scratch / "run"), *settings]
        with self._output.open("wb") as channel:
            self.launcher = subprocess.Popen(
                line, stdout=channel, stderr=channel, cwd=scratch, start_new_session=True
            )

    def ranks_at_a_random_moment(self, random: Random) -> list[int]:
        """Process ids of the ranks, some time after they have started."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        deadline = time.monotonic() + LIMIT_S
        ranks: list[int] = []
        while len(ranks) < 2 and time.monotonic() < deadline:
            ranks = [int(pid) for pid in children.read_text().split()]
            time.sleep(0.05)
        until = time.monotonic() + random.uniform(0.0, 12.0)
        while self.launcher.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        return ranks

    def wait(self) -> Ended:
        """For the launcher's own end."""
        try:
            code: int | None = self.launcher.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        return Ended(code, self._output.read_text(errors="replace"))

    def end(self, ranks: list[int]) -> None:
        """Leave nothing running."""
        for pid in [self.launcher.pid, *ranks]:
            if _is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


def _goes_on(world: World, scratch: Path, done: str) -> Outcome:
    run_dir = scratch / "run"
    ended = train(scratch, world.dataset, run_dir, ranks=2)
    expected = world.result_on_two_ranks(scratch.parent)
    outcome = judge(ended, lambda: result_of(run_dir) == expected, done)
    if outcome.verdict is Verdict.CLEAR_ERROR:
        return Outcome(Verdict.LOST, outcome.detail)
    return outcome


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
