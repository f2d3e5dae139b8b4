"""Attention within the sequences of a block, in pieces whose scores a processor's cache holds."""

# W rows of a block, N behaviours in a row, X of them in a piece, A width of a result

from collections.abc import Callable

import torch
from torch import Tensor

from cdp_torchrec.interest.eager import is_eager_on_cpu

_QUERIES_AT_ONCE = 64
_PAIRS_AT_ONCE = 1 << 17
"""Pairs of a query and a key; 2 MiB of scores with four heads."""


def in_pieces(attend: Callable[..., Tensor], queries: Tensor, *memory: Tensor) -> Tensor:
    """What the behaviours of a block see, [W, N, A].

    Where a query sees no later behaviour, `attend` may leave out the keys from `stop` on: half of
    all, which one piece would score and then mask.

    Args:
        attend: what the behaviours in columns [start, stop) see, [W', X, A], from their queries,
            [W', X, ...], the memory of these rows, `start` and `stop`.
        queries: of all behaviours, [W, N, ...].
        memory: what each row may see, [W, ...] each.
    """
    length = queries.shape[1]
    if not is_eager_on_cpu(queries):
        return attend(queries, *memory, 0, length)
    num_rows = max(1, _PAIRS_AT_ONCE // max(1, length * min(length, _QUERIES_AT_ONCE)))
    parts = []
    for of_rows, *seen in zip(*(x.split(num_rows) for x in (queries, *memory)), strict=True):
        found, start = [], 0
        for some in of_rows.split(_QUERIES_AT_ONCE, dim=1):
            stop = start + some.shape[1]
            found.append(attend(some, *seen, start, stop))
            start = stop
        parts.append(torch.cat(found, dim=1))
    return torch.cat(parts)
