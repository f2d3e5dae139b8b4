"""Counts of a history, by recency and by age, are those that a scan finds."""

from itertools import pairwise

import numpy as np
import pytest

from cdp_torchrec.data.history.found import FoundHistories
from cdp_torchrec.data.history.lookup import HistoryCounts
from cdp_torchrec.data.history.store import Behaviours, Slices
from cdp_torchrec.data.history.sums import exact_counts

DAY_MS = 86_400_000
COUNTS = HistoryCounts(segments=(1, 2), ages=(1.0, 3.5, 10.0))
NUM_ITEMS = 5


def make_histories(rng: np.random.Generator, lengths: list[int]) -> FoundHistories:
    """Behaviours at noons and midnights, so that some are exactly as old as an age of COUNTS."""
    stop = np.cumsum(lengths)
    start = stop - lengths
    half_days = [np.sort(rng.integers(0, 40, length)) for length in lengths]
    behaviours = Behaviours(
        item=rng.integers(1, NUM_ITEMS + 1, stop[-1]).astype(np.int32),
        timestamp=np.concatenate(half_days) * (DAY_MS // 2),
        action=None,
        category=None,
    )
    before = np.full(len(lengths), 20 * DAY_MS + 1)
    before[::2] -= 1
    request = np.arange(len(lengths))
    return FoundHistories(behaviours, Slices(start, stop), request, before, category=None)


def scan(histories: FoundHistories, history: int, item: int) -> list[int]:
    slices = histories.slices
    rows = range(slices.stop[history] - 1, slices.start[history] - 1, -1)  # youngest first
    items = [int(histories.behaviours.item[row]) for row in rows]
    days = [(histories.before[history] - histories.behaviours.timestamp[r]) / DAY_MS for r in rows]
    by_recency = [items[:1], items[1:3], items[3:]]
    edges = [0.0, *COUNTS.ages, np.inf]
    aged = list(zip(days, items, strict=True))
    by_age = [[i for age, i in aged if a < age <= b] for a, b in pairwise(edges)]
    return [
        count
        for parts in (by_recency, by_age)
        for count in (*map(len, parts), *(part.count(item) for part in parts))
    ]


@pytest.mark.parametrize("num_impressions", [60, 2_000])
def test_counts_are_those_of_a_scan(num_impressions: int) -> None:
    """Few impressions are compared with all behaviours, many are searched for."""
    rng = np.random.default_rng(0)
    histories = make_histories(rng, [0, 7, 1, 30, 0, 2, 16, 40, 3, 0])
    index = rng.integers(0, 10, num_impressions)
    items = rng.integers(1, NUM_ITEMS + 2, num_impressions)
    found = exact_counts(histories, COUNTS, index, items)
    assert found.shape == (num_impressions, COUNTS.width)
    pairs = zip(index.tolist(), items.tolist(), strict=True)
    assert found.tolist() == [scan(histories, history, item) for history, item in pairs]
    assert (found[:, COUNTS.width // 2 + 1 :].sum(axis=0) > 0).all()


def test_ages_are_part_of_what_is_counted_only_if_asked_for() -> None:
    rng = np.random.default_rng(1)
    histories, index, items = make_histories(rng, [9, 4]), np.array([1, 0]), np.array([2, 3])
    without = HistoryCounts(COUNTS.segments)
    assert without.width == 6 and COUNTS.width == 14
    found = exact_counts(histories, COUNTS, index, items)
    assert np.array_equal(exact_counts(histories, without, index, items), found[:, :6])


def test_no_impressions_have_no_counts() -> None:
    histories = make_histories(np.random.default_rng(2), [3])
    nothing = np.zeros(0, dtype=np.int64)
    assert exact_counts(histories, COUNTS, nothing, nothing).shape == (0, COUNTS.width)
