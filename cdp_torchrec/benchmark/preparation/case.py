"""One size of log: prepared, and a day appended to it, each in a process of its own."""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cdp_torchrec.benchmark.data.case import size_of
from cdp_torchrec.benchmark.histories.isolated import (
    Limits,
    PassedLimit,
    peak_memory_mib,
    run_isolated,
)
from cdp_torchrec.benchmark.output import scratch_directory
from cdp_torchrec.benchmark.preparation.config import DAYS, PreparationSettings
from cdp_torchrec.benchmark.preparation.log import SPEC, write_log
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.staging import build_dataset

_COPY_BYTES = 16
"""Of a behaviour in a copy: item, category, time."""
_READ = 1 << 20
_NO_LIMITS = Limits(time_s=1e6, memory_gib=1e6)


@dataclass(frozen=True)
class Cost:
    """What a step took."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    """Resident memory of the process, its libraries too."""


@dataclass(frozen=True)
class SizeFigures:
    """All of one size."""

    behaviours: int
    users: int
    requests: int
    impressions: int
    preparation: Cost
    append: Cost
    """Of a day, to the dataset of the 60 before it."""
    limit: Cost
    """Of reading the staging files in a row and writing as many bytes as the dataset has."""
    store_bytes: int
    copies_bytes: int
    """Of histories of 16 bytes a behaviour in each request of the 60 days."""


def measure_size(behaviours: int, settings: PreparationSettings) -> SizeFigures:
    """Make a log, prepare it, append a day.

    Args:
        behaviours: of the log.
        settings: what is measured.
    """
    users = behaviours // settings.behaviours_per_user
    with scratch_directory(settings.scratch, "benchmark-prepare-") as scratch:
        staging, day = Path(scratch, "staging"), Path(scratch, "day")
        dataset = Path(scratch, "dataset")
        write_log(staging, range(DAYS), (behaviours, users), users, settings)
        sizes = (behaviours // DAYS, users // DAYS)
        write_log(day, range(DAYS, DAYS + 1), sizes, users, settings)
        limits = EngineLimits(settings.memory_gib, settings.num_threads)
        preparation = _cost(partial(build_dataset, staging, dataset, SPEC, limits))
        store, copies = size_of(dataset / "history"), _copies(dataset)
        written = size_of(dataset)
        limit = _cost(partial(_read_and_write, staging, Path(scratch, "bytes"), written))
        append = _cost(partial(append_day, dataset, day, limits))
    return SizeFigures(
        behaviours=behaviours,
        users=users,
        requests=users,
        impressions=users * settings.num_candidates,
        preparation=preparation,
        append=append,
        limit=limit,
        store_bytes=store,
        copies_bytes=copies,
    )


def _cost(work: Callable[[], object]) -> Cost:
    found = run_isolated(_run, work, _NO_LIMITS)
    assert not isinstance(found, PassedLimit), "there is no limit to pass"
    return found


def _run(work: Callable[[], object]) -> Cost:
    wall, cpu = time.monotonic(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return Cost(time.process_time() - cpu, time.monotonic() - wall, peak_memory_mib())


def _read_and_write(source: Path, target: Path, size: int) -> None:
    """What nobody can do without."""
    buffer = bytearray(_READ)
    for path in source.rglob("*.parquet"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as file:
        for start in range(0, size, _READ):
            file.write(memoryview(buffer)[: min(_READ, size - start)])


def _copies(dataset: Path) -> int:
    lengths = [
        pq.read_table(dataset / split, columns=["history_length"])["history_length"].to_numpy()
        for split in ("train", "test")
    ]
    return _COPY_BYTES * int(np.concatenate(lengths).sum(dtype=np.int64))
