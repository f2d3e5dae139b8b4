"""Rows of benchmarks: interest modules, by the names of their files in configs/interest."""

from collections.abc import Sequence
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.shipped import SHIPPED

SYNTHETIC = SHIPPED / "data" / "synthetic.toml"
"""Run that is measured where no layer is named."""


def row_files(names: Sequence[str] | None, *, leave_out: Sequence[str] = ()) -> dict[str, Path]:
    """Layers by name, in the order of the names.

    Args:
        names: value of benchmark.rows; None: all there are.
        leave_out: rows that this benchmark cannot measure.

    Raises:
        ConfigError: there is no such row.
    """
    files = {path.stem: path for path in sorted((SHIPPED / "interest").glob("*.toml"))}
    files = {name: path for name, path in files.items() if name not in leave_out}
    if names is None:
        return files
    unknown = sorted(set(names) - set(files))
    if unknown:
        raise ConfigError.of(
            [f"benchmark.rows: found {unknown}, expected some of {', '.join(files)}"]
        )
    return {name: files[name] for name in names}
