"""Which row each id owns in a table with managed collision, as it was when training ended.

tables/<entity>-owners.npy     id that owns each row, int64 [E]; -1: the row is free or shared

Nothing is counted and no row changes owners while a model is served.
"""

# E rows, P ids of a lookup

import numpy as np

NOBODY = -1


class RowOwners:
    """Rows of ids, as model.managed_collision has them."""

    def __init__(self, owners: np.ndarray, *, buckets: int) -> None:
        """Sort the owners.

        Args:
            owners: id that owns each row, int64 [E].
            buckets: parts of the table.
        """
        self.owners = owners
        self._buckets = buckets
        [rows] = np.nonzero(owners != NOBODY)
        order = np.argsort(owners[rows])
        self._rows = rows[order]
        self._ids = owners[self._rows]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of ids, int64 [P]; that of an id without one is the last row of its bucket."""
        shared = (ids % self._buckets + 1) * (len(self.owners) // self._buckets) - 1
        if not len(self._ids):
            return shared
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[place] == ids, self._rows[place], shared)

    def with_rows(self, index: np.ndarray, owners: np.ndarray) -> "RowOwners":
        """With other owners of some rows."""
        changed = self.owners.copy()
        changed[index] = owners
        return RowOwners(changed, buckets=self._buckets)
