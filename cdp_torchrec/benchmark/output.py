"""What a benchmark leaves: a table for people and all numbers for programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdp_torchrec.config import ConfigError
from cdp_torchrec.whole_file import why_unwritable, write_json, write_whole


def check_output(directory: Path | None) -> None:
    """Whether results can be written, before anything is measured.

    Args:
        directory: value of benchmark.output; None: nothing will be written.

    Raises:
        ConfigError: it can neither be made nor be written to.
    """
    if directory is not None and (reason := why_unwritable(directory)):
        raise ConfigError.of([f"benchmark.output = '{directory}': {reason}"])


def write_output(
    directory: Path | None, name: str, *, text: str, numbers: Mapping[str, Any]
) -> None:
    """Write NAME.md and NAME.json into a directory, which is made if need be.

    Args:
        directory: value of benchmark.output; None: nothing is written.
        name: of the benchmark.
        text: the table.
        numbers: everything that was measured.
    """
    if directory is None:
        return
    write_whole(directory / f"{name}.md", text.rstrip("\n") + "\n")
    write_json(directory / f"{name}.json", numbers)
