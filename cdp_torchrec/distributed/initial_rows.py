"""Initial embeddings: a function of table, row and column only, not of the plan."""

import zlib

from torch import Tensor

from cdp_torchrec.keyed_random import Stream, keyed_normal, seeded


def initial_rows(name: str, rows: Tensor, width: int, *, std: float, seed: int) -> Tensor:
    """Normal values of some rows of a table, [L, width].

    Args:
        name: parameter name, such as `...embedding_bags.t_item.weight`; its digest separates the
            tables.
        rows: counted over the whole table, int64 [L].
        width: columns of the whole table.
        std: standard deviation.
        seed: another seed, other values.
    """
    digest = zlib.crc32(name.split(".")[-2].encode())
    key = seeded(rows + (digest << 31), seed)
    return std * keyed_normal(key, width, Stream.INITIAL_ROWS)
