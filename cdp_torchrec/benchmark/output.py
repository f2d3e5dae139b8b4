"""What a benchmark leaves: a table for people and all numbers for programs.

Both say how busy the machine was before the benchmark began.
"""

import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdp_torchrec.config import ConfigError
from cdp_torchrec.undefined import json_ready
from cdp_torchrec.whole_file import DISK_FULL, why_unwritable, write_json, write_whole


def check_output(directory: Path | None) -> None:
    """Whether results can be written, before anything is measured.

    Args:
        directory: value of benchmark.output; None: nothing will be written.

    Raises:
        ConfigError: it can neither be made nor be written to.
    """
    if directory is not None and (reason := why_unwritable(directory)):
        raise ConfigError.of([f"benchmark.output = '{directory}': {reason}"])


@contextmanager
def scratch_directory(place: Path | None, prefix: str) -> Generator[Path]:
    """A directory for the files of a benchmark, which is removed at the end.

    Args:
        place: value of benchmark.scratch; None: the system's.
        prefix: of its name.

    Raises:
        OSError: nothing more can be written; names the directory.
    """
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix) as scratch:
        try:
            yield Path(scratch)
        except OSError as error:
            if error.errno in DISK_FULL and error.filename is None:
                error.strerror, error.filename = os.strerror(error.errno), scratch
            raise


_LOAD = os.getloadavg()[0]
"""One-minute load average when the command started, so without what it does itself."""


def publish(directory: Path | None, name: str, *, text: str, numbers: Mapping[str, Any]) -> None:
    """Print a table, and write NAME.md and NAME.json into a directory, which is made if need be.

    Args:
        directory: value of benchmark.output; None: nothing is written.
        name: of the benchmark.
        text: the table.
        numbers: everything that was measured.
    """
    text = f"{text.rstrip()}\n\n{machine_load(_LOAD, os.cpu_count() or 1)}"
    if directory is not None:
        write_whole(directory / f"{name}.md", text + "\n")
        all_numbers = {**numbers, "load_average_before": _LOAD}
        write_json(directory / f"{name}.json", json_ready(all_numbers))
    print(text)


def machine_load(load: float, cores: int) -> str:
    """How far times can be trusted: a benchmark needs a core that nobody else keeps busy."""
    line = f"Load average before it began: {load:.1f} on {cores} cores"
    if load < cores - 0.5:
        return f"{line}."
    return f"{line}. THE MACHINE WAS BUSY: trust ratios, not times."
