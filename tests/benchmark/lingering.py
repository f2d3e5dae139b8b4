"""A benchmark that would take minutes in a child of its own, to be stopped: run as a module.

python -m tests.benchmark.lingering SCRATCH
"""

import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from cdp_torchrec.benchmark.histories.isolated import Limits, run_isolated
from cdp_torchrec.commands import benchmark
from cdp_torchrec.distributed.process_group import run_main

CHILD = "child"
"""Appears in SCRATCH/* when the child is at work, and says its process id."""


def linger(directory: Path) -> None:
    partial = directory / "partial"
    partial.write_text(str(os.getpid()))
    partial.rename(directory / CHILD)
    time.sleep(600)


def run(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=arguments[0]) as scratch:
        run_isolated(linger, Path(scratch), Limits(time_s=600, memory_gib=8))


def main(arguments: list[str]) -> None:
    with mock.patch.dict(benchmark.BENCHMARKS, {"prepare": SimpleNamespace(run=run)}):
        benchmark.main(["prepare", *arguments])


if __name__ == "__main__":
    run_main(main)
