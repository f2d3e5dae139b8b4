"""A store that counts the bytes that are read of it."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.store import Behaviours, BehaviourSource, Slices


@dataclass
class Tally:
    """Bytes."""

    read: int = 0


@dataclass
class CountedStore:
    """Answers as the store does; every column tallies what is taken out of it."""

    store: BehaviourSource
    tally: Tally = field(default_factory=Tally)

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """As the store's; the binary search for `before` counts, too."""
        behaviours, slices = self.store.recent(user, np.full_like(before, np.iinfo(np.int64).max))
        counted = self._counted(behaviours)
        return counted, counted.before(slices, before)

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """As the store's."""
        latest = np.full_like(before, np.iinfo(np.int64).max)
        behaviours, slices = self.store.gated(user, category, latest)
        counted = self._counted(behaviours)
        return counted, counted.before(slices, before)

    def _counted(self, behaviours: Behaviours) -> Behaviours:
        def counted(column: Column | None) -> Column | None:
            return None if column is None else CountedColumn(column, self.tally)

        return replace(
            behaviours,
            item=CountedColumn(behaviours.item, self.tally),
            timestamp=CountedColumn(behaviours.timestamp, self.tally),
            action=counted(behaviours.action),
            category=counted(behaviours.category),
            cluster=counted(behaviours.cluster),
            attributes={n: CountedColumn(c, self.tally) for n, c in behaviours.attributes.items()},
        )


class CountedColumn:
    """A column that tallies what is taken out of it."""

    def __init__(self, column: Column, tally: Tally) -> None:
        self._column = column
        self._tally = tally

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the column's."""
        return self._column.dtype

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        taken = self._column[rows]
        self._tally.read += taken.nbytes
        return taken

    def __len__(self) -> int:
        return len(self._column)
