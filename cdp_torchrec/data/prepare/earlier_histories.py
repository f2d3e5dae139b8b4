"""What the store knows of the users of a day that is appended.

How long their histories are, when they touched the candidates of the day last, and which clusters
of behaviours are still open. The histories of these users are read once for each question, some
users at a time.
"""

# U users, L behaviours, W keys that are asked for

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.behaviour_clusters import EarlierClusters, alike_columns
from cdp_torchrec.data.history.store import Behaviours, BehaviourSource
from cdp_torchrec.data.schema import DatasetError

_ROWS = 1 << 18
"""Behaviours that are read at once, if no history is longer: what is made of them fits a cache."""
_FEWEST_BUCKETS, _MOST_BITS = 1 << 12, 24
_ALWAYS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class LastTouches:
    """The last earlier behaviours of users on items."""

    user: np.ndarray
    """Index of the user among the users."""
    item: np.ndarray
    timestamp: np.ndarray
    """Milliseconds since the epoch."""
    ordinal: np.ndarray
    """Its place in the history, from 1."""


class EarlierHistories:
    """The histories of some users before the day."""

    def __init__(self, store: BehaviourSource, users: np.ndarray) -> None:
        """Args: the behaviours; codes of the users, rising, [U]."""
        self._store = store
        self.users = users
        _, slices = store.recent(users, np.full(len(users), _ALWAYS))
        self.lengths = slices.lengths
        """Behaviours of each user, int64 [U]."""

    def last_touches(self, user: np.ndarray, item: np.ndarray) -> LastTouches:
        """The last behaviour of users on items, where there is one.

        Args:
            user: user codes, [W].
            item: item codes, [W].
        """
        pairs = _Keys((np.searchsorted(self.users, user), item))
        found = _Found.of(len(pairs.keys))
        timestamp = np.zeros(len(pairs.keys), dtype=np.int64)
        for match in self._matches(pairs, lambda behaviours: [behaviours.item]):
            found.add(match)
            timestamp[match.key] = match.behaviours.timestamp[match.rows]
        there = found.count > 0
        user, item = pairs.columns
        return LastTouches(user[there], item[there], timestamp[there], found.last[there])

    def clusters(self, owner: np.ndarray, alike: Sequence[np.ndarray]) -> EarlierClusters:
        """What comes before each behaviour of the day in its history.

        Args:
            owner: user codes, rising, [L].
            alike: codes that members of a cluster share, [L] each.

        Raises:
            DatasetError: the store has no clusters.
        """
        # New users have nothing before.
        user = np.minimum(np.searchsorted(self.users, owner), max(len(self.users) - 1, 0))
        known = self.users[user] == owner if len(self.users) else np.zeros(len(owner), dtype=bool)
        groups = _Keys((user[known], *(codes[known] for codes in alike)))
        found = _Found.of(len(groups.keys))
        cluster = np.zeros(len(groups.keys), dtype=np.int64)
        for match in self._matches(groups, lambda b: alike_columns(b.item, b.category, b.action)):
            found.add(match)
            if match.behaviours.cluster is None:
                raise DatasetError(
                    "history/by_time/cluster.npy is missing: the dataset was made before there "
                    "were clusters of behaviours. Prepare it again with `cdp_torchrec prepare_data`"
                )
            cluster[match.key] = match.behaviours.cluster[match.rows]

        def of_row(values: np.ndarray) -> np.ndarray:
            spread = np.zeros(len(owner), dtype=np.int64)
            spread[known] = values
            return spread

        return EarlierClusters(
            of_row(self.lengths[user[known]]),
            of_row(found.count[groups.inverse]),
            of_row(cluster[groups.inverse]),
        )

    def _matches(
        self, keys: "_Keys", columns: Callable[[Behaviours], Sequence[Column]]
    ) -> Iterator["_Match"]:
        """Behaviours that have one of the keys (user, *columns), in the order of histories."""
        asked = np.unique(keys.columns[0])
        ends = np.cumsum(self.lengths[asked])
        start = 0
        while start < len(asked):
            limit = (ends[start - 1] if start else 0) + _ROWS
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            user = asked[start:stop]
            before = np.full(len(user), _ALWAYS)
            behaviours, slices = self._store.recent(self.users[user], before)
            rows, lengths = slices.rows(), slices.lengths
            codes = [column[rows] for column in columns(behaviours)]
            maybe = keys.candidates(np.repeat(user.astype(np.uint32), lengths), codes)
            inside = np.cumsum(lengths)
            owner = np.searchsorted(inside, maybe, side="right")
            key, hit = keys.find(user[owner], *(values[maybe] for values in codes))
            kept, owner = maybe[hit], owner[hit]
            ordinal = kept - (inside - lengths)[owner] + 1
            yield _Match(key, ordinal, rows[kept], behaviours)
            start = stop


@dataclass(frozen=True)
class _Match:
    """Some behaviours that were asked for."""

    key: np.ndarray
    """Number of the key."""
    ordinal: np.ndarray
    """Place in the history, from 1."""
    rows: np.ndarray
    behaviours: Behaviours


class _Keys:
    """Distinct rows of some columns of codes, found again among others."""

    def __init__(self, columns: Sequence[np.ndarray]) -> None:
        """Args: codes of at least 0; the first column is the one by which is searched first."""
        self._spans = [int(codes.max(initial=0)) + 1 for codes in columns]
        self.keys, self.inverse = np.unique(self._key(columns), return_inverse=True)
        size = 1 << min(max(16 * len(self.keys), _FEWEST_BUCKETS).bit_length(), _MOST_BITS)
        self._is_used = np.zeros(size, dtype=bool)
        user, *others = self.columns
        self._is_used[self._buckets(user.astype(np.uint32), others)] = True

    @property
    def columns(self) -> list[np.ndarray]:
        """The columns of the distinct rows."""
        keys, found = self.keys, []
        for span in reversed(self._spans):
            keys, codes = np.divmod(keys, span)
            found.append(codes)
        return found[::-1]

    def candidates(self, first: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
        """Rows that may be one of these: a look into a small table spares most of them the search.

        Args:
            first: the first column, uint32.
            others: the other columns.
        """
        return np.flatnonzero(self._is_used[self._buckets(first, others)])

    def find(self, *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the distinct row for those rows that are one, and where these stand."""
        if not len(self.keys):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        key = self._key(columns)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        same = self.keys[place] == key
        for codes, span in zip(columns, self._spans, strict=True):
            same &= codes < span  # a larger code has the key of another row
        hit = np.flatnonzero(same)
        return place[hit], hit

    def _buckets(self, first: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
        mixed = first * np.uint32(2_654_435_761)
        for codes in others:
            mixed ^= codes.astype(np.uint32)
            mixed *= np.uint32(2_246_822_519)
            mixed ^= mixed >> np.uint32(15)
        return mixed & np.uint32(len(self._is_used) - 1)

    def _key(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        key = np.zeros(len(columns[0]), dtype=np.int64)
        for codes, span in zip(columns, self._spans, strict=True):
            key = key * span + codes
        return key


@dataclass(frozen=True)
class _Found:
    """How many behaviours each key has, and where the last one stands in the history."""

    count: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, size: int) -> "_Found":
        return cls(np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64))

    def add(self, match: _Match) -> None:
        """More behaviours; they are in the order of time, and of equal keys the last one stays."""
        np.add.at(self.count, match.key, 1)
        self.last[match.key] = match.ordinal
