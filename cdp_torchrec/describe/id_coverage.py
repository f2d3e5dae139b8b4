"""How many ids have an embedding row of their own at each minimum count, and how much they cover.

A minimum count that leaves a handful of rows looks like any other in a configuration; here it does
not.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.config import VocabularyConfig
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import STARTER, DatasetError, Schema
from cdp_torchrec.data.tables.stored_vocabulary import training_counts

MINIMUM_COUNTS = (1, 2, 5, 10, 20, 50, 100, 300)
_ROWS = 1 << 20
"""Behaviours that are read at once."""


@dataclass(frozen=True)
class Coverage:
    """What the ids with a minimum count in training cover."""

    min_count: int
    rows: int
    """Ids with at least so many."""
    of_test: float
    """Share of the ids in the test split that are not missing; NaN if there is none."""
    of_behaviours: float
    """Share of those in all behaviours; NaN where behaviours have no such ids."""


class IdCoverage:
    """Occurrences of each id in the test split and in the behaviours, by entity."""

    def __init__(self, dataset: Path, schema: Schema, store: HistoryStore, *, until: int) -> None:
        """Count the behaviours.

        Args:
            dataset: dataset directory.
            schema: its schema, without appended days.
            store: its behaviours.
            until: behaviours later than that, ms, are of days that were appended and merged.

        Raises:
            DatasetError: a vocabulary is missing or damaged.
        """
        self.features = {
            f.entity: [g.name for g in schema.features if g.entity == f.entity]
            for f in (*schema.features, *schema.history.attributes)
            if f.entity is not None
        }
        """Features of each entity; none, if only attributes of behaviours are of it."""
        self.counts = {entity: training_counts(dataset, schema, entity) for entity in self.features}
        self._test = {entity: np.zeros(len(c) + 1, np.int64) for entity, c in self.counts.items()}
        self._behaviours: dict[str, np.ndarray] = {}
        columns, times = store.by_time.codes(), store.by_time.timestamp
        for part, entity in schema.history.code_columns.items():
            if entity in self.counts:
                size = len(self.counts[entity]) + 1
                found = _occurrences(columns[part], size, times, until)
                self._behaviours[entity] = self._behaviours.get(entity, 0) + found

    def add(self, part: Impressions) -> None:
        """Add requests of the test split."""
        for entity, names in self.features.items():
            total = self._test[entity]
            for name in names:
                np.add.at(total, _codes(part, name), 1)

    def at(self, entity: str, min_count: int) -> Coverage:
        """Coverage of an entity at a minimum count."""
        kept = self.counts[entity] >= min_count
        return Coverage(
            min_count=min_count,
            rows=int(kept.sum()),
            of_test=_share(self._test[entity], kept),
            of_behaviours=_share(self._behaviours.get(entity), kept),
        )


def starter_minimum_counts(dataset: Path) -> Mapping[str, int] | None:
    """`min_count` of each entity that the dataset's starter.toml names; None without that file.

    Raises:
        DatasetError: the file is no TOML, or holds something else there.
    """
    path = dataset / STARTER
    try:
        data = tomllib.loads(path.read_text()).get("data", {})
        sections = data.get("vocabulary", {})
        return {name: VocabularyConfig(**section).min_count for name, section in sections.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{path}: cannot read data.vocabulary: {error}; mend the file, or write it anew with "
            f"`cdp_torchrec prepare_data starter {dataset}`"
        ) from error


def _codes(part: Impressions, name: str) -> np.ndarray:
    if name in part.candidate:
        return part.candidate[name]
    return part.bags[name].values if name in part.bags else part.request[name]


def _occurrences(codes: Column, size: int, times: Column, until: int) -> np.ndarray:
    total = np.zeros(size, np.int64)
    for start in range(0, len(codes), _ROWS):
        rows = slice(start, start + _ROWS)
        total += np.bincount(codes[rows][times[rows] <= until].ravel(), minlength=size)
    return total


def _share(occurrences: np.ndarray | None, kept: np.ndarray) -> float:
    """Of the ids that are not missing, code 0, those that are kept."""
    if occurrences is None or not occurrences[1:].any():
        return float("nan")
    return float(occurrences[1:][kept].sum() / occurrences[1:].sum())
