"""Labels softened by a teacher: knowledge distillation (Hinton et al., arXiv 1503.02531).

The click loss is linear in the label, so that a loss against clicks and one against a teacher's
click probabilities, mixed, are one loss against mixed labels, (1 - w) y + w p.
"""

# N impressions

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.config import SoftLabelsConfig
from cdp_torchrec.data.schema import DatasetError, Schema

_COLUMNS = ("label", "probability")
_FOOTER_END = 8
"""Bytes behind the footer of a Parquet file: its length, and PAR1."""


class SoftLabels:
    """A teacher's click probabilities for a training split, in its order."""

    def __init__(self, config: SoftLabelsConfig, schema: Schema) -> None:
        """Look at the file's footer.

        Args:
            config: which file, and how much it counts.
            schema: of the dataset as it is read.

        Raises:
            ConfigError: there is no such file, or it is not of this split.
        """
        self._path, self._weight = config.file, np.float32(config.weight)
        self._footer = footer = _footer(config.file)
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._ends = np.cumsum(rows)
        num_impressions = schema.splits["train"].impressions
        if footer.num_rows != num_impressions:
            raise _error(
                config.file,
                f"has {footer.num_rows} rows, but the training split has {num_impressions} "
                "impressions, and each needs a teacher's probability",
            )

    def soften(self, first: int, labels: np.ndarray) -> np.ndarray:
        """Labels of some impressions, softened.

        Args:
            first: number of the first of them in the split.
            labels: clicks, [N].

        Returns:
            float32 [N], (1 - weight) y + weight p.

        Raises:
            DatasetError: the file is damaged, has no probability, or is of other impressions.
        """
        label, probability = self._read(first, first + len(labels))
        if not np.array_equal(label, labels):
            row = first + int(np.flatnonzero(label != labels)[0])
            raise DatasetError(
                f"{self._path}: row {row}: label {label[row - first]:g}, but impression {row} of "
                f"the training split has {labels[row - first]}: the file is of other requests, or "
                "in another order"
            )
        is_wrong = ~((probability >= 0) & (probability <= 1))  # also where it is no number
        if is_wrong.any():
            row = int(np.flatnonzero(is_wrong)[0])
            raise DatasetError(
                f"{self._path}: row {first + row}: probability {probability[row]:g}, "
                "allowed: 0 to 1"
            )
        return label + self._weight * (probability - label)

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Label and probability of rows [start, stop), float32."""
        low = int(np.searchsorted(self._ends, start, side="right"))
        high = int(np.searchsorted(self._ends, stop, side="left"))
        begin = int(self._ends[low - 1]) if low else 0
        try:
            with pq.ParquetFile(self._path, metadata=self._footer) as file:
                table = file.read_row_groups(
                    range(low, high + 1), columns=list(_COLUMNS), use_threads=False
                )
            table = table.slice(start - begin, stop - start)
            label, probability = (table[name].cast(pa.float32()).to_numpy() for name in _COLUMNS)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self._path}: cannot be read: {error}") from error
        return label, probability


def digest_of(config: SoftLabelsConfig) -> str:
    """Of the file's footer, in hexadecimal digits: it has sizes, extremes and places of columns.

    Raises:
        ConfigError: there is no such file.
    """
    _footer(config.file)
    with config.file.open("rb") as file:
        file.seek(-_FOOTER_END, 2)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-_FOOTER_END - size, 2)
        return hashlib.sha256(file.read(size)).hexdigest()


def _footer(path: Path) -> pq.FileMetaData:
    try:
        with path.open("rb") as file:
            footer = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise _error(path, f"cannot be read: {reason}") from error
    found = footer.schema.to_arrow_schema()
    missing = [name for name in _COLUMNS if name not in found.names]
    if missing:
        raise _error(path, f"has no column {missing[0]}; it has {found.names}")
    return footer


def _error(path: Path, what: str) -> ConfigError:
    return ConfigError.of(
        [
            f"data.soft_labels.file = '{path}': {what}; `cdp_torchrec evaluate TEACHER "
            "--split train --predictions` writes one"
        ]
    )
