"""A look at a few places of a history store: is it in the order that its readers rely on?

A reader finds behaviours by binary search. In a store of another order it finds nothing, or the
future, and says nothing: all histories are empty and the training goes on. The places are spread
over each array; what is read does not grow with the store.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.schema import DatasetError

_PLACES = 32
_ROWS = 512
"""Rows looked at in each place."""
_SHORT = 1 << 16
"""An array of at most so many rows is looked at as a whole, which takes less time than places."""


def check_rising(path: Path, keys: np.ndarray) -> None:
    """Keys rise strictly, within each place and from place to place.

    Raises:
        DatasetError: they do not.
    """
    places = list(_places(len(keys)))
    begins = np.array([keys[place.start] for place in places])
    if (np.diff(begins) <= 0).any() or any((np.diff(keys[rows]) <= 0).any() for rows in places):
        raise DatasetError(f"{path}: its keys do not rise{_DAMAGED}")


def check_offsets(path: Path, offsets: np.ndarray, num_rows: int) -> None:
    """Offsets begin at 0, never fall, and end with the number of rows.

    Raises:
        DatasetError: they do not.
    """
    places = list(_places(len(offsets)))
    begins = np.array([offsets[place.start] for place in places])
    falls = (np.diff(begins) < 0).any() or any((np.diff(offsets[r]) < 0).any() for r in places)
    if falls or (int(offsets[0]), int(offsets[-1])) != (0, num_rows):
        raise DatasetError(f"{path}: is no list of offsets from 0 to {num_rows:,}{_DAMAGED}")


def check_times(path: Path, times: Column, offsets: np.ndarray) -> None:
    """Times do not fall within a history.

    Args:
        path: file of the times.
        times: of all behaviours, [N].
        offsets: history h has rows offsets[h]:offsets[h + 1].

    Raises:
        DatasetError: they do.
    """
    for place in _places(len(times)):
        falls = place.start + 1 + np.flatnonzero(np.diff(times[place]) < 0)
        begins = np.searchsorted(offsets, falls)
        inside = falls[np.asarray(offsets[np.minimum(begins, len(offsets) - 1)]) != falls]
        if len(inside):
            raise DatasetError(
                f"{path}: behaviour {inside[0]:,} is older than the one before it in the same "
                f"history{_DAMAGED}"
            )


def check_codes(folder: Path, columns: Mapping[str, Column], limits: Mapping[str, int]) -> None:
    """Codes lie within their vocabularies.

    Args:
        folder: of the files.
        columns: codes of all behaviours by part, [N] each.
        limits: largest code of each part.

    Raises:
        DatasetError: one does not.
    """
    for part, codes in columns.items():
        for place in _places(len(codes)):
            low, high = int(codes[place].min()), int(codes[place].max())
            if low < 0 or high > limits[part]:
                raise DatasetError(
                    f"{folder / part}.npy: holds code {low if low < 0 else high:,}, the vocabulary "
                    f"has 1 to {limits[part]:,}{_DAMAGED}"
                )


_DAMAGED = ": it is damaged, or not of this preparation"


def _places(length: int) -> Iterator[slice]:
    """Runs of rows, spread from the first to the last; a short array is one run."""
    if length <= _SHORT:
        yield from [slice(0, length)][:length]
        return
    for start in np.linspace(0, length - _ROWS, _PLACES).astype(np.int64):
        yield slice(int(start), int(start) + _ROWS)
