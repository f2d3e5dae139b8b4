"""Embedding rows of ids in several tables at once, where they are few."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from cdp_torchrec.data.tables.embedding_table import Table

FEW = 4096
"""Ids up to which one look at all costs less than each table's own."""


class OwnRows:
    """Rows of the ids that have one of their own; the others' their tables find."""

    def __init__(self, tables: Sequence[Table]) -> None:
        """Args: table of each key."""
        self._tables = tables
        self._keys = np.arange(len(tables))
        self._shift = np.array([table.num_oov_rows for table in tables], dtype=np.int64)
        # With a hash and with managed collision rows do not follow the codes.
        self._most = np.array(
            [
                table.num_kept
                if table.hash_bucket_size is None and table.managed_collision is None
                else -1
                for table in tables
            ],
            dtype=np.int64,
        )

    def rows(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As Table.rows of each key's table and codes, with its errors."""
        lengths = [len(of_key) for of_key in codes]
        joined = np.concatenate(codes, dtype=np.int64)
        key = self._keys.repeat(lengths)
        rows = (joined + self._shift[key]) * (joined > 0)
        found = [rows[start:stop] for start, stop in pairwise(accumulate(lengths, initial=0))]
        is_other = (joined < 0) | (joined > self._most[key])
        for number in sorted(set(key[is_other].tolist())):
            found[number] = self._tables[number].rows(codes[number])
        return found
