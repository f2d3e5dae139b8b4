"""Raw ids of a vocabulary: which ones look alike, and what they look like."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.data.summary import Figure

_COMPARED = 200_000
"""Ids that are compared: the most frequent ones."""
_EXAMPLES = 3
_LONGEST = 24
_NUMBER = re.compile(r"^\s*0*([0-9]+)(\.0+)?\s*$")


def similar_ids(dataset: Path, entity: str) -> Figure:
    """Share of the ids that another one equals but for leading zeros, blanks or '.0'."""
    by_number: dict[str, list[str]] = {}
    raw = _raw(dataset, entity, at_most=_COMPARED)
    for text in raw:
        number = _NUMBER.sub(r"\1", text).strip()
        by_number.setdefault(number, []).append(text)
    groups = [group for group in by_number.values() if len(group) > 1]
    if not groups:
        return Figure(0.0, len(raw))
    return Figure(sum(map(len, groups)) / len(raw), len(raw), _quoted(groups[0]))


def example_ids(dataset: Path, entity: str, codes: np.ndarray) -> str:
    """A few raw ids of these codes, the most frequent ones, in words."""
    chosen = np.sort(codes[codes > 0])[:_EXAMPLES] - 1
    if len(chosen) == 0:
        return "none"
    raw = _raw(dataset, entity, at_most=int(chosen[-1]) + 1)
    return _quoted([raw[place] for place in chosen])


def _raw(dataset: Path, entity: str, *, at_most: int) -> list[str]:
    """The first raw ids in the order of their codes."""
    path = dataset / "vocabulary" / f"{entity}.parquet"
    ids: list[str] = []
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["raw"]):
                ids += batch["raw"].slice(0, at_most - len(ids)).to_pylist()
                if len(ids) == at_most:
                    break
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: cannot read the vocabulary: {error}") from error
    return ids


def _quoted(ids: list[str]) -> str:
    return ", ".join(repr(text[:_LONGEST]) for text in ids[:_EXAMPLES])
