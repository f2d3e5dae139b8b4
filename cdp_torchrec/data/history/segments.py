"""A store of several segments, one for each day that was appended, read as if it were one.

A segment's behaviours are all later than those of the one before it. So a history is that of the
first segment, then that of the next, and so on, and each is found in its segment as in a store.
"""

# Q histories, S segments, P = Q * S pieces, L behaviours

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.days import Segment, segments
from cdp_torchrec.data.history.store import Behaviours, HistoryStore, Slices
from cdp_torchrec.data.manifest import check_at_open
from cdp_torchrec.data.schema import HistorySchema, Schema

_Answer = tuple[Behaviours, Slices]


def open_history(
    dataset: Path, schema: Schema, *, check: bool = True
) -> "HistoryStore | SegmentedHistory":
    """The behaviours of all users.

    Args:
        dataset: dataset directory.
        schema: its schema, with the days whose behaviours are read.
        check: whether to look at a few places of the files.

    Raises:
        DatasetError: files are missing or damaged.
    """
    return open_segments(segments(dataset, schema.days), schema.history, check=check)


def open_segments(
    found: Sequence[Segment], history: HistorySchema, *, check: bool
) -> "HistoryStore | SegmentedHistory":
    """As `open_history`.

    Args:
        found: the segments in the order of time.
        history: what behaviours consist of.
        check: as in `open_history`.
    """
    stores = [_open_segment(segment, history, check=check) for segment in found]
    return stores[0] if len(stores) == 1 else SegmentedHistory(stores)


def extended(
    store: "HistoryStore | SegmentedHistory", segment: Segment, history: HistorySchema
) -> "SegmentedHistory":
    """A store that is open, and a segment that follows it and has just been written.

    Args:
        store: all earlier segments.
        segment: the next one.
        history: what behaviours consist of.
    """
    return SegmentedHistory([*stores_of(store), _open_segment(segment, history, check=False)])


def stores_of(store: "HistoryStore | SegmentedHistory") -> tuple[HistoryStore, ...]:
    """The segments of a store, in the order of time."""
    return store.stores if isinstance(store, SegmentedHistory) else (store,)


def _open_segment(segment: Segment, history: HistorySchema, *, check: bool) -> HistoryStore:
    num_ids = {part: segment.entities[e].num_ids for part, e in history.code_columns.items()}
    sizes = {
        "num_behaviours": segment.num_behaviours,
        "num_users": segment.entities["user"].num_ids,
    }
    if check:
        check_at_open(segment.root, "history")
    store = HistoryStore(
        segment.root / "history",
        history.model_copy(update=sizes),
        num_categories=num_ids.get("category", 0),
    )
    if check:
        store.check_sample(num_ids)
    return store


class SegmentedHistory:
    """Several stores in the order of time."""

    def __init__(self, stores: Sequence[HistoryStore]) -> None:
        """Args: the stores; sent to another process, they are mapped anew there."""
        self.stores = tuple(stores)

    def behaviours_of_users(self) -> np.ndarray:
        """How many behaviours each user has, [largest user code + 1]."""
        of_stores = [store.behaviours_of_users() for store in self.stores]
        total = np.zeros(max(map(len, of_stores)), dtype=np.int64)
        for counts in of_stores:
            total[: len(counts)] += counts
        return total

    def recent(self, user: np.ndarray, before: np.ndarray) -> _Answer:
        """As HistoryStore."""
        return _joined([store.recent(user, before) for store in self.stores])

    def gated(self, user: np.ndarray, category: np.ndarray, before: np.ndarray) -> _Answer:
        """As HistoryStore."""
        return _joined([store.gated(user, category, before) for store in self.stores])


@dataclass
class _Places:
    """Where the behaviours of some histories lie: history 0 in segment 0, in segment 1 ..."""

    begins: np.ndarray
    """First row of each piece, if all pieces stand one behind the other, int64 [P]."""
    shift: np.ndarray
    """What leads from such a row to that of the piece's segment, int64 [P]."""
    num_segments: int
    total: int
    _rows: np.ndarray | None = None
    _found: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def find(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows by segment: their order, where each segment ends in it, and the segments' rows."""
        # The columns of the same behaviours are read one after the other.
        if self._found is None or self._rows is not rows:
            piece = np.searchsorted(self.begins, rows, side="right") - 1
            segment = (piece % self.num_segments).astype(np.uint16)  # sorted in linear time
            order = np.argsort(segment, kind="stable")
            ends = np.cumsum(np.bincount(segment, minlength=self.num_segments))
            self._rows, self._found = rows, (order, ends, (rows + self.shift[piece])[order])
        return self._found


class JoinedColumn:
    """A column of behaviours that lie in several segments; read by rows, as an array is."""

    def __init__(self, columns: Sequence[Column], places: _Places) -> None:
        """Args: the column of each segment, and where the behaviours lie."""
        self._columns = columns
        self._places = places

    def __len__(self) -> int:
        return self._places.total

    @property
    def dtype(self) -> np.dtype[Any]:
        """As that of each segment's column."""
        return self._columns[0].dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        order, ends, places = self._places.find(rows)
        found = np.empty((len(rows), *self._columns[0][:0].shape[1:]), dtype=self.dtype)
        for column, start, stop in zip(self._columns, [0, *ends[:-1]], ends, strict=True):
            if start < stop:
                found[order[start:stop]] = column[places[start:stop]]
        return found


def _joined(answers: Sequence[_Answer]) -> _Answer:
    lengths = np.stack([slices.lengths for _, slices in answers], axis=1)
    used = np.flatnonzero(lengths.any(axis=0))
    if len(used) <= 1:  # most users were not there on most days
        return answers[int(used[0]) if len(used) else 0]
    answers, lengths = [answers[int(segment)] for segment in used], lengths[:, used]
    ends = np.cumsum(lengths)
    begins = ends - lengths.ravel()
    starts = np.stack([slices.start for _, slices in answers], axis=1).ravel()
    places = _Places(begins, starts - begins, len(answers), int(ends[-1]))
    of_segments = [behaviours for behaviours, _ in answers]

    def join(column: Callable[[Behaviours], Column | None]) -> JoinedColumn | None:
        found = [column(behaviours) for behaviours in of_segments]
        there = [values for values in found if values is not None]
        return JoinedColumn(there, places) if len(there) == len(found) else None

    item, timestamp = join(lambda b: b.item), join(lambda b: b.timestamp)
    assert item is not None and timestamp is not None
    history_ends = ends.reshape(lengths.shape)[:, -1]
    return (
        Behaviours(
            item=item,
            timestamp=timestamp,
            action=join(lambda b: b.action),
            category=join(lambda b: b.category),
            cluster=join(lambda b: b.cluster),
            attributes={
                name: JoinedColumn([b.attributes[name] for b in of_segments], places)
                for name in of_segments[0].attributes
            },
        ),
        Slices(history_ends - lengths.sum(axis=1), history_ends),
    )
