"""A rank ends with its launcher, and the others miss a rank that says nothing any more."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed import HashStore

from cdp_torchrec.distributed.heartbeat import Heartbeat, LostRank
from cdp_torchrec.distributed.stopped import stopped_ranks
from tests.distributed.project import make_project
from tests.paths import ROOT
from tests.processes import is_running, wait_until

SCRIPTS = Path(sys.executable).parent
LIMIT_S = 1.0
WITHIN_S = 90
"""A busy machine takes seconds to end a process that has imported torch; one that is short of
memory reads it from the disk again for that."""

JOB = """
import os, signal, sys, time
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.distributed.process_group import init_process_group, rank, run_main

def main(arguments):
    import torch, torch.distributed as dist
    if f"stop-before={rank()}" in arguments:
        os.kill(os.getpid(), signal.SIGSTOP)
    join_s = 2.0 if "join=2" in arguments else 300.0
    init_process_group(RanksConfig(silence_limit_s=3, collective_timeout_s=join_s))
    dist.barrier()
    sys.stdout.write(f"rank {rank()} is {os.getpid()} of {os.getppid()}\\n")
    sys.stdout.flush()
    if f"stop={rank()}" in arguments:
        os.kill(os.getpid(), signal.SIGSTOP)
    if "sleep" in arguments:
        time.sleep(100)
    dist.barrier()

if __name__ == "__main__":
    run_main(main)
    if f"stop-after={rank()}" in sys.argv:
        os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path, JOB)


@contextmanager
def started(project: Path, line: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher at work; both streams of the job in `stdout`."""
    program, *arguments = line.split()
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOGLEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in launcher}
    with subprocess.Popen(
        [str(SCRIPTS / program), *arguments],
        cwd=project,
        env=environment | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        yield process
        process.kill()


def processes(job: subprocess.Popen[str]) -> set[int]:
    """Process ids of both ranks, which have begun, and of what started them."""
    found: dict[str, str] = {}
    assert job.stdout
    while len(found) < 2:
        line = job.stdout.readline()
        assert line, "the job ended"
        for pid, parent in re.findall(r"rank \d is (\d+) of (\d+)", line):
            found[pid] = parent
    return {int(pid) for pid in (*found, *found.values())}


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cdp_torchrec.distributed.launcher $$ sleep 100"
    parent = subprocess.Popen(
        ["/bin/bash", "-c", f"{command} & echo $!; wait"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes():
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child))


@pytest.mark.slow
def test_a_command_that_ignores_its_signal_is_killed_in_the_end(tmp_path: Path) -> None:
    deaf = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    command = f'{sys.executable} -m cdp_torchrec.distributed.launcher $$ /bin/bash -c "{deaf}"'
    parent = subprocess.Popen(
        ["/bin/bash", "-c", f"{command} & echo $!; wait"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PET_SHUTDOWN_TIMEOUT": "0"},
        text=True,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "deaf\n"
    parent.kill()
    parent.wait()
    time.sleep(1)
    assert is_running(child)
    wait_until(lambda: not is_running(child))


def test_a_command_whose_starter_has_ended_already_ends_at_once() -> None:
    command = [sys.executable, "-m", "cdp_torchrec.distributed.launcher", "1", "sleep", "100"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=WITHIN_S)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_nobody_joins_says_so_in_one_line(project: Path, rank: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "launch/train.py", "join=2"],
        cwd=project,
        env=os.environ
        | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    missing = f"rank {rank}: error: rank {1 - rank} has not joined the job of 2 ranks within 2 s"
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "line", ["torchrun --standalone --nproc-per-node 2", "torchx run dist.ddp -j 1x2"]
)
def test_ranks_end_with_a_launcher_that_was_killed(project: Path, line: str) -> None:
    with started(project, f"{line} launch/train.py sleep") as job:
        pids = processes(job)
        job.kill()
        wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_ends_the_job_by_name(project: Path, stopped: int) -> None:
    line = f"torchrun --standalone --nproc-per-node 2 launch/train.py stop={stopped}"
    with started(project, line) as job:
        said, _ = job.communicate(timeout=100)
    assert job.returncode != 0
    missed = rf"rank {1 - stopped}: error: rank {stopped} \(process \d+ on .*\) has been silent for"
    assert len(re.findall(missed, said)) == 2, said  # when it happens, and last by the launcher


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stopped", ["before=1", "after=0"])
def test_a_rank_stopped_before_it_joins_or_after_its_work_ends_the_job_by_name(
    project: Path, stopped: str
) -> None:
    line = f"torchrun --standalone --nproc-per-node 2 launch/train.py stop-{stopped}"
    with started(project, line) as job:
        said, _ = job.communicate(timeout=100)
    assert job.returncode == 1
    missed = rf"error: rank {stopped[-1]} \(process \d+ on .*\) has been stopped for"
    assert len(re.findall(missed, said)) == 1, said
    assert said.count("has been stopped for") == 2, said  # last by the launcher


def test_a_stopped_process_is_found_by_its_rank() -> None:
    sleep = ["sleep", "100"]
    with (
        subprocess.Popen(sleep, env=os.environ | {"RANK": "7"}) as stopped,
        subprocess.Popen(sleep, env=os.environ | {"RANK": "8"}) as running,
    ):
        stopped.send_signal(signal.SIGSTOP)
        wait_until(lambda: stopped_ranks(os.getpid()) == {stopped.pid: "7"})
        stopped.send_signal(signal.SIGCONT)
        wait_until(lambda: not stopped_ranks(os.getpid()))
        stopped.kill()
        running.kill()


def ranks_of(store: HashStore, world_size: int, lost: list[LostRank]) -> list[Heartbeat]:
    return [
        Heartbeat(store, rank=rank, world_size=world_size, limit_s=LIMIT_S, lost=lost.append)
        for rank in range(world_size)
    ]


def test_rank_0_misses_the_one_that_is_silent() -> None:
    lost: list[LostRank] = []
    ranks = ranks_of(HashStore(), 3, lost)
    ranks[0].start()
    ranks[1].start()
    wait_until(lambda: bool(lost))
    ranks[1].leave()
    assert [missed.rank for missed in lost] == [2]
    assert f"rank 2 (process {os.getpid()} on " in str(lost[0])
    assert f"has been silent for {LIMIT_S:.0f} s" in str(lost[0])


def test_the_others_miss_rank_0() -> None:
    lost: list[LostRank] = []
    _, *others = ranks_of(HashStore(), 3, lost)
    for rank in others:
        rank.start()
    wait_until(lambda: len(lost) == 2)
    assert {missed.rank for missed in lost} == {0}


def test_a_rank_that_has_left_is_not_missed() -> None:
    lost: list[LostRank] = []
    first, second = ranks_of(HashStore(), 2, lost)
    first.start()
    second.start()
    second.leave()
    time.sleep(2 * LIMIT_S)
    first.leave()
    assert not lost


def test_a_rank_that_has_left_has_no_thread_in_the_store() -> None:
    """Where the interpreter ends before such a thread comes back, the process is aborted."""

    class SlowStore(HashStore):
        asked = threading.Event()

        def clone(self) -> "SlowStore":
            return self

        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.asked.set()
            time.sleep(0.5)
            return super().multi_get(keys)

    first, _ = ranks_of(store := SlowStore(), 2, [])
    first.start()
    store.asked.clear()
    assert store.asked.wait(WITHIN_S)
    first.leave()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
