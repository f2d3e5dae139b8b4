"""A random part of each history: the poor observation that training completes to the rich one."""

# H histories, L behaviours

import numpy as np
import torch

from cdp_torchrec.data.history.store import Slices
from cdp_torchrec.keyed_random import Stream, impression_key, keyed_uniform


def draw_part(slices: Slices, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some m of the n behaviours of each history, without replacement, m log-uniform in 1..n.

    P(m <= k) = log(k + 1) / log(n + 1): each doubling is as likely as the next. The draw depends on
    the key alone.

    Args:
        slices: the histories.
        key: int64 [H]; equal keys draw equal parts of equally long histories.

    Returns:
        The behaviours' rows, history after history, and m of each history, int64 [H].
    """
    rows, lengths = slices.rows(), slices.lengths
    size = _uniform(key, Stream.PART_SIZE)
    kept = np.minimum(np.exp(size * np.log1p(lengths)).astype(np.int64), lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(rows)) - np.repeat(slices.ends - lengths, lengths)
    # Histories keep their order, and the behaviours of each come in a random one.
    behaviour = impression_key(key[owner], place, 0)
    shuffled = np.argsort(owner + _uniform(behaviour, Stream.PART_MEMBER), kind="stable")
    return rows[shuffled[place < kept[owner]]], kept


def _uniform(key: np.ndarray, stream: Stream) -> np.ndarray:
    return keyed_uniform(torch.from_numpy(key), stream).numpy()
