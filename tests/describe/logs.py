"""Impressions written by hand, for the figures of a log."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cdp_torchrec.data.request_files import Impressions


def lists(labels: Sequence[ArrayLike], **columns: Sequence[ArrayLike]) -> Impressions:
    """Requests with these labels of their candidates and, flattened, these columns."""
    candidate = {"label": labels, **columns}
    return Impressions(
        request={"request_id": np.arange(len(labels))},
        bags={},
        candidate={name: np.concatenate([*map(np.array, c)]) for name, c in candidate.items()},
        request_index=np.repeat(np.arange(len(labels)), [np.size(row) for row in labels]),
    )
