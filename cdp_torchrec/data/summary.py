"""What preparation found out about a log as a whole (`<dataset>/summary.toml`).

Figures only: what they mean is in `plausibility.py`, which judges them at preparation, in `inspect`
and at the start of a training.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from cdp_torchrec.config import Config
from cdp_torchrec.data.schema import DatasetError, Schema

SUMMARY = "summary.toml"
"""Name of the file in the dataset directory."""
SUMMARY_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    value: float
    count: int
    """How many things it was measured on."""
    example: str = ""
    """One of them, in words."""


class Summary(Config):
    """The whole of `summary.toml`."""

    version: int = SUMMARY_VERSION
    fingerprint: str
    """Of the schema beside it."""
    figures: dict[str, dict[str, Figure]]
    """By name of the figure and by what it is of: a split, a feature, an entity ..."""

    def value(self, name: str, of: str) -> float | None:
        """The value of a figure; None if it was not measured."""
        figure = self.figures.get(name, {}).get(of)
        return None if figure is None else figure.value

    def save(self, dataset: Path) -> None:
        """Write `<dataset>/summary.toml`."""
        data = self.model_dump(mode="json", exclude_defaults=True) | {"version": self.version}
        (dataset / SUMMARY).write_text(tomli_w.dumps(data))


def load_summary(dataset: Path, schema: Schema) -> Summary:
    """Read `<dataset>/summary.toml`.

    Args:
        dataset: dataset directory.
        schema: its whole schema.

    Raises:
        DatasetError: there is none, or it is damaged or of another dataset.
    """
    path = dataset / SUMMARY
    again = "prepare the dataset again with `cdp_torchrec prepare_data`"
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing, another release wrote this dataset: {again}") from (
            error
        )
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: unreadable, {again}: {error}") from error
    if data.get("version") != SUMMARY_VERSION:
        raise DatasetError(
            f"{path}: version {data.get('version')!r}, this release reads version "
            f"{SUMMARY_VERSION}: {again}"
        )
    try:
        # strict=False: TOML has tables where a figure is an object.
        summary = Summary.model_validate(data, strict=False)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise DatasetError(f"{path}: {key} is damaged: {again}") from error
    if summary.fingerprint != schema.fingerprint():
        raise DatasetError(f"{path}: does not belong to the schema.toml beside it: {again}")
    return summary
