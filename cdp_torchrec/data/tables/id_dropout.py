"""In training, some ids stand on the row that rare ids share, so that it learns to serve them.

Without it only ids below `min_count` train the shared rows, and at test time every new id meets
them; content features beside an id that is always known have nothing to add, either.
"""

# V ids

import zlib

import numpy as np
import torch

from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.keyed_random import Stream, impression_key, keyed_uniform, seeded


def with_dropout(table: Table, codes: np.ndarray, request: np.ndarray, *, draw: int) -> np.ndarray:
    """Embedding rows of id codes in training, int64 [V].

    One draw decides for an id everywhere in a request: a candidate and the behaviours on it keep
    their match, on the shared row.

    Args:
        table: says how often an id falls on its shared row.
        codes: ids, [V].
        request: id of the request in which each stands, [V].
        draw: of this epoch and run; another draw, other ids.

    Raises:
        DatasetError: as Table.rows.
    """
    rows = table.rows(codes)
    if not table.dropout or not len(rows):
        return rows
    codes = codes.astype(np.int64, copy=False)
    key = torch.from_numpy(impression_key(request.astype(np.int64), codes, draw))
    # Entities differ: the third item and the third user of a request have nothing in common.
    key = seeded(key, zlib.crc32(table.entity.encode()))
    is_dropped = keyed_uniform(key, Stream.ID_DROPOUT).numpy() < table.dropout
    return np.where(is_dropped & (codes > 0), table.shared_rows(codes), rows)
