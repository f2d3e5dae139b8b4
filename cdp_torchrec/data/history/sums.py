"""What is summed up of found histories: items to be pooled, and exact counts."""

# B impressions, Q histories, K recency segments

import numpy as np

from cdp_torchrec.data.history.dayparts import split_by_daypart
from cdp_torchrec.data.history.distinct_keys import CODE_BITS, distinct
from cdp_torchrec.data.history.found import FoundHistories
from cdp_torchrec.data.history.lookup import HistoryCounts
from cdp_torchrec.data.history.sub_sample import draw_part
from cdp_torchrec.data.jagged_codes import JaggedCodes
from cdp_torchrec.data.layout import DAYPART_KEY, PART_KEY, POOL_KEY
from cdp_torchrec.keyed_random import impression_key

_BUCKETS = 1 << 16
_MOST_PAIRS = 1 << 14
"""Pairs of an impression and a behaviour up to which all are compared: those of a request."""


def pooled_by_recency(
    histories: FoundHistories, segments: tuple[int, ...]
) -> dict[str, JaggedCodes]:
    """Items of each history by recency, to be pooled."""
    parts = histories.by_recency(segments)
    items = histories.items_of(parts)
    return _pooled(POOL_KEY, items, parts.lengths.reshape(len(segments) + 1, -1))


def pooled_by_daypart(histories: FoundHistories, dayparts: int) -> dict[str, JaggedCodes]:
    """Items of each history by the time of day, to be pooled."""
    timestamp = np.asarray(histories.behaviours.timestamp[histories.slices.rows()])
    split = split_by_daypart(histories.items, histories.slices.lengths, timestamp, dayparts)
    return _pooled(DAYPART_KEY, *split)


def pooled_part(
    histories: FoundHistories, request_id: np.ndarray, draw: int | None, *, dayparts: int
) -> dict[str, JaggedCodes]:
    """A random part of each gated history, the same wherever the request is read, by daypart."""
    assert histories.category is not None
    if draw is None:
        nothing = np.zeros(0, dtype=np.int64)
        return _pooled(PART_KEY, nothing, np.zeros((dayparts, 0), dtype=np.int64))
    request = request_id[histories.request].astype(np.int64)
    key = impression_key(request, histories.category, draw)
    rows, lengths = draw_part(histories.slices, key)
    items = np.asarray(histories.behaviours.item[rows])
    if dayparts == 1:
        return _pooled(PART_KEY, items, lengths[None])
    timestamp = np.asarray(histories.behaviours.timestamp[rows])
    return _pooled(PART_KEY, *split_by_daypart(items, lengths, timestamp, dayparts))


def exact_counts(
    histories: FoundHistories, counts: HistoryCounts, index: np.ndarray, item_id: np.ndarray
) -> np.ndarray:
    """How many behaviours impressions have.

    Args:
        histories: gated histories.
        counts: by what they are told apart.
        index: history of each impression, [B].
        item_id: item of each impression, [B].

    Returns:
        Behaviours of its history by recency, those of them on its item by recency, then, if counts
        are told apart by it, the same two by age, float [B, counts.width].
    """
    if not len(index):
        return np.zeros((0, counts.width), dtype=np.float32)
    if len(index) * len(histories.items) <= _MOST_PAIRS:
        owner = np.arange(len(histories.slices.start)).repeat(histories.slices.lengths)
        is_match = (histories.items == item_id[:, None]) & (owner == index[:, None])
        found, places = is_match.nonzero()
        owner, num_found, place = owner[places], len(index), slice(None)
    else:
        found, places, owner, num_found, place = _search(histories, index, item_id)
    rows = places + (histories.slices.stop - histories.slices.ends)[owner]
    partitions = [histories.by_recency(counts.segments)]
    if counts.ages:
        partitions.append(histories.by_age(counts.ages_ms))
    columns = []
    for parts in partitions:
        starts, lengths = (
            x.reshape(-1, len(histories.before)) for x in (parts.start, parts.lengths)
        )
        # A behaviour lies before the starts of all parts that are younger than its own.
        part = (starts[:-1, owner] > rows).sum(axis=0)
        cell = found * len(starts) + part
        on_item = np.bincount(cell, minlength=num_found * len(starts)).reshape(-1, len(starts))
        columns += [lengths.T[index], on_item[place]]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _pooled(key: str, items: np.ndarray, lengths: np.ndarray) -> dict[str, JaggedCodes]:
    """Items to be pooled, of all histories in segment 0, in segment 1 ...; lengths [K, Q]."""
    ends = lengths.sum(axis=1).cumsum().tolist()
    return {
        f"{key}_{k}": JaggedCodes(items[start:stop], own)
        for k, (start, stop, own) in enumerate(zip([0, *ends[:-1]], ends, lengths, strict=True))
    }


def _search(
    histories: FoundHistories, index: np.ndarray, item_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Behaviours on the items of the impressions that read their history.

    Returns:
        Number of the pair of history and item of each such behaviour, its place among all
        behaviours, its history; how many pairs there are, and the pair of each impression.
    """
    wanted, place = distinct((index << CODE_BITS) | item_id)
    # A look into a small table spares nearly all behaviours the search, however long histories are.
    is_wanted = np.zeros(_BUCKETS, dtype=bool)
    is_wanted[item_id % _BUCKETS] = True
    places = np.flatnonzero(is_wanted[histories.items % _BUCKETS])
    owner = histories.slices.ends.searchsorted(places, side="right")
    key = (owner << CODE_BITS) | histories.items[places]
    found = np.minimum(np.searchsorted(wanted, key), len(wanted) - 1)
    is_match = wanted[found] == key
    return found[is_match], places[is_match], owner[is_match], len(wanted), place
