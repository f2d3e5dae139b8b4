"""Point-in-time history store: all behaviours of all users once, memory-mapped.

A behaviour counts for a request only if it happened strictly before it. Both questions of a
ranking model are slices found by binary search: the user's last behaviours, and the user's last
behaviours in one category. The second is the category gate (paper eq. 2), applied to the full
history before any truncation.
"""

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.checks import (
    check_codes,
    check_offsets,
    check_rising,
    check_times,
)
from cdp_torchrec.data.schema import DatasetError, HistorySchema

_REMEMBERED = 1 << 20
_FEW = 8
"""Queries that are searched one after the other: those of a request."""
_COLUMNS = 16
"""A store whose columns are larger than this part of the memory is not meant to be in memory as a
whole: of it only the pages that somebody asks for are read."""


@dataclass(frozen=True)
class Slices:
    """Rows [start, stop) of an array, one pair per query, int64."""

    start: np.ndarray
    stop: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """Rows in each slice."""
        return self.stop - self.start

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each slice ends in `rows`."""
        return self.lengths.cumsum()

    def rows(self) -> np.ndarray:
        """All rows of all slices, one slice after the other; not to be written to."""
        return self._rows

    @cached_property
    def _rows(self) -> np.ndarray:
        total = int(self.ends[-1]) if len(self.ends) else 0
        return np.arange(total) + (self.stop - self.ends).repeat(self.lengths)

    def last(self, count: int, *, skip: int = 0) -> "Slices":
        """The `count` last rows of each slice, after leaving out the `skip` very last."""
        stop = np.maximum(self.stop - skip, self.start)
        return Slices(np.maximum(stop - count, self.start), stop)


class SortedSlices:
    """Slices that were found sorted by time, so that they are not read for that again.

    Files that are mapped do not change. A history that nothing was added to since the last look is
    one of these, and most gated histories are. It remembers a bounded number; others are read anew.
    """

    def __init__(self, num_behaviours: int) -> None:
        """Args: of the files; where there are few, little need be remembered."""
        self._size = min(num_behaviours + 1, _REMEMBERED)
        self._known: np.ndarray | None = None
        """Made when it is needed: days that were appended have many stores, which are seldom
        read."""

    def others(self, slices: Slices) -> Slices:
        """Those that are not among them, and are not the end of one."""
        if self._known is None:
            return slices
        start, stop = self._known[slices.stop % self._size].T
        unknown = (stop != slices.stop) | (start > slices.start)
        return Slices(slices.start[unknown], slices.stop[unknown])

    def add(self, slices: Slices) -> None:
        """Remember them."""
        if self._known is None:
            self._known = np.zeros((self._size, 2), dtype=np.int64)
        rows = np.stack([slices.start, slices.stop], axis=1)
        self._known[slices.stop % self._size] = rows


@dataclass(frozen=True)
class Behaviours:
    """Behaviours in one order; slices address its rows."""

    item: Column
    """Int32 item codes."""
    timestamp: Column
    """Int64 milliseconds since the epoch."""
    action: Column | None
    """Int32 action codes; None where the log has none."""
    category: Column | None
    """Int32 category codes; None where the log has none, or where the order is by category."""
    cluster: Column | None = None
    """Int32, as from `assign_clusters`; None where the order is by category, or in a dataset that
    was made before there were clusters."""
    attributes: Mapping[str, Column] = field(default_factory=dict)
    """By name: numbers float32 [N], NaN where missing; ids int32 [N, max_ids], 0 for none."""
    checked: SortedSlices | None = None
    """What `check` has found out about slices of these columns; None: it looks at all, always."""

    def codes(self) -> dict[str, Column]:
        """The columns of codes that the log has, by part; attributes by the name of their file."""
        columns = {"item": self.item, "category": self.category, "action": self.action}
        found = {part: codes for part, codes in columns.items() if codes is not None}
        ids = {n: c for n, c in self.attributes.items() if np.issubdtype(c.dtype, np.integer)}
        return found | {f"attribute_{name}": codes for name, codes in ids.items()}

    def before(self, slices: Slices, before: np.ndarray) -> Slices:
        """The part of each slice that happened strictly before a timestamp, [Q]."""
        if len(before) <= _FEW:
            return Slices(slices.start, self._before_one_by_one(slices, before))
        low, high = slices.start, slices.stop
        while True:
            searching = low < high
            if not searching.any():
                return Slices(slices.start, low)
            middle = (low + high) // 2
            # Finished queries look at row 0, and their result is not used.
            earlier = self.timestamp[np.where(searching, middle, 0)] < before
            low = np.where(searching & earlier, middle + 1, low)
            high = np.where(searching & ~earlier, middle, high)

    def _before_one_by_one(self, slices: Slices, before: np.ndarray) -> np.ndarray:
        """The ends of the same, found sooner where they are few."""
        queries = zip(slices.start.tolist(), slices.stop.tolist(), before, strict=True)
        ends = [start + self.timestamp[start:stop].searchsorted(b) for start, stop, b in queries]
        return np.array(ends, dtype=np.int64)

    def check(self, slices: Slices, before: np.ndarray) -> None:
        """Every slice is sorted by time and older than its request.

        Raises:
            DatasetError: the files are damaged or were not written by the preparation.
        """
        unknown = slices if self.checked is None else self.checked.others(slices)
        if len(unknown.start):
            self._check_order(unknown)
            if self.checked is not None:
                self.checked.add(unknown)
        # The last one of a sorted slice is the youngest.
        filled = slices.lengths > 0
        youngest = slices.stop[filled] - 1
        late = self.timestamp[youngest] >= before[filled]
        if late.any():
            row = int(youngest[np.argmax(late)])
            raise DatasetError(f"history: behaviour {row} is not older than its request")

    def _check_order(self, slices: Slices) -> None:
        rows, lengths = slices.rows(), slices.lengths
        falls = np.diff(self.timestamp[rows]) < 0
        falls[slices.ends[lengths > 0][:-1] - 1] = False  # from one slice to the next
        if falls.any():
            row = int(rows[np.argmax(falls) + 1])
            raise DatasetError(
                f"history: behaviour {row} is older than the one before it; "
                "each user's behaviours must be sorted by timestamp"
            )


class BehaviourSource(Protocol):
    """Whoever knows what users did before a moment."""

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """All behaviours of each user strictly before a time; arguments as HistoryStore's."""
        ...

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """Those in one category."""
        ...


class HistoryStore:
    """Read access to `<dataset>/history`, or to the segment of a day, in which few users are."""

    def __init__(self, directory: Path, schema: HistorySchema, *, num_categories: int) -> None:
        """Map the files.

        Args:
            directory: `<dataset>/history`.
            schema: what the dataset declares about it.
            num_categories: largest category code; 0 where the log has no categories.

        Raises:
            DatasetError: a file is missing, or the files do not fit each other.
        """
        self._arguments = (directory, schema, num_categories)
        self._has_gate = schema.category_entity is not None
        self._num_categories = num_categories
        self._users = _load(directory / "users.npy", None) if _names_users(directory) else None
        num_users = schema.num_users + 1 if self._users is None else len(self._users)
        self._user_offsets = _load(directory / "user_offsets.npy", num_users + 1)
        self.by_time = _behaviours(directory / "by_time", schema, with_category=self._has_gate)
        if self._has_gate:
            folder = directory / "by_category"
            self.by_category = _behaviours(folder, schema, with_category=False)
            self._keys = _load(folder / "keys.npy", None)
            self._key_offsets = _load(folder / "offsets.npy", len(self._keys) + 1)

    def check_sample(self, num_ids: Mapping[str, int]) -> None:
        """Whether a few places of each file are in the order that searching relies on.

        Args:
            num_ids: largest code of each column of codes (HistorySchema.code_columns).

        Raises:
            DatasetError: one is not, or holds an unknown code; names the file.
        """
        directory, schema, _ = self._arguments
        orders = [("by_time", "user_offsets.npy", self.by_time, self._user_offsets)]
        if self._users is not None:
            check_rising(directory / "users.npy", self._users)
        if self._has_gate:
            check_rising(directory / "by_category" / "keys.npy", self._keys)
            offsets = ("by_category/offsets.npy", self.by_category, self._key_offsets)
            orders.append(("by_category", *offsets))
        for folder, file, behaviours, offsets in orders:
            check_offsets(directory / file, offsets, schema.num_behaviours)
            path = directory / folder
            check_times(path / "timestamp.npy", behaviours.timestamp, offsets)
            check_codes(path, behaviours.codes(), num_ids)

    def behaviours_of_users(self) -> np.ndarray:
        """How many behaviours each user has, [largest user code + 1]."""
        lengths = np.diff(self._user_offsets)
        if self._users is None:
            return lengths
        _, schema, _ = self._arguments
        of_all = np.zeros(schema.num_users + 1, dtype=np.int64)
        of_all[self._users] = lengths
        return of_all

    def __reduce__(self) -> tuple[Callable[..., "HistoryStore"], tuple[Any, ...]]:
        """In another process, the same files are mapped anew; their content is not sent."""
        return _open, self._arguments

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """All behaviours of each user strictly before a time; none of users it does not know.

        Args:
            user: user codes, [Q].
            before: timestamps in milliseconds, int64 [Q].
        """
        if self._users is None:
            found = user < len(self._user_offsets) - 1
            place = np.where(found, user, 0)
        else:
            place, found = _find(self._users, user)
        slices = _slices(self._user_offsets, place, found)
        return self.by_time, self.by_time.before(slices, before)

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """All behaviours of each user in one category strictly before a time (paper eq. 2).

        A missing category (code 0) and one beyond the vocabulary match nothing. A log without
        categories has no gate: the answer is the whole history.

        Args:
            user: user codes, [Q].
            category: category codes, [Q].
            before: timestamps in milliseconds, int64 [Q].
        """
        if not self._has_gate:
            return self.recent(user, before)
        key = user.astype(np.int64) * (self._num_categories + 1) + category
        place, found = _find(self._keys, key)
        known = (category > 0) & (category <= self._num_categories)
        slices = _slices(self._key_offsets, place, found & known)
        return self.by_category, self.by_category.before(slices, before)


def _open(directory: Path, schema: HistorySchema, num_categories: int) -> HistoryStore:
    return HistoryStore(directory, schema, num_categories=num_categories)


def _names_users(directory: Path) -> bool:
    return (directory / "users.npy").exists()


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each wanted key among rising keys, and whether it is there."""
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def _slices(offsets: np.ndarray, place: np.ndarray, found: np.ndarray) -> Slices:
    if not found.any():  # there may be no offsets but the first
        nothing = np.zeros(len(place), dtype=np.int64)
        return Slices(nothing, nothing)
    return Slices(offsets[place] * found, offsets[place + 1] * found)


def _behaviours(folder: Path, schema: HistorySchema, *, with_category: bool) -> Behaviours:
    length = schema.num_behaviours
    has_action = schema.action_entity is not None
    has_clusters = (folder / "cluster.npy").exists()
    return Behaviours(
        item=_load(folder / "item.npy", length),
        timestamp=_load(folder / "timestamp.npy", length),
        action=_load(folder / "action.npy", length) if has_action else None,
        category=_load(folder / "category.npy", length) if with_category else None,
        cluster=_load(folder / "cluster.npy", length) if has_clusters else None,
        attributes={a.name: _load(folder / f"{a.file}.npy", length) for a in schema.attributes},
        checked=SortedSlices(length),
    )


def _memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _load(path: Path, length: int | None) -> np.ndarray:
    try:
        # Of a path that is no string numpy looks up every folder.
        mapped = np.load(str(path), mmap_mode="r")
        if mapped.nbytes > _memory() / _COLUMNS:
            mapped.base.madvise(mmap.MADV_RANDOM)  # else the system reads much around each page
        array = mapped.view(np.ndarray)  # numpy's own class makes each access dearer
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot read the history store: {error}") from error
    if length is not None and len(array) != length:
        raise DatasetError(f"{path}: {len(array)} entries, expected {length}")
    return array
