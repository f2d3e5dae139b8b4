"""Histories of a run of impressions in every form that the model reads.

Sums and counts are of the whole gated history, however long; only sequences are cut.
"""

# B impressions, G gated histories, L behaviours, K recency segments

from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from cdp_torchrec.data.behaviour_clusters import clusters_before
from cdp_torchrec.data.behaviour_values import attribute_codes, attribute_matrix
from cdp_torchrec.data.dayparts import split_by_daypart
from cdp_torchrec.data.history_store import Behaviours, BehaviourSource, Slices
from cdp_torchrec.data.layout import (
    DAYPART_KEY,
    PART_KEY,
    POOL_KEY,
    WHOLE_KEY,
    FeatureLayout,
)
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.sequence_index import SequenceColumns
from cdp_torchrec.data.strangers import draw_strangers
from cdp_torchrec.data.sub_sample import draw_part
from cdp_torchrec.keyed_random import impression_key

_CODE_BITS = 32
_CODE_MASK = (1 << _CODE_BITS) - 1
_BUCKETS = 1 << 16
_MOST_PAIRS = 1 << 14
"""Pairs of an impression and a behaviour up to which all are compared: those of a request."""
_FEW = 256
"""Keys up to which Python's set finds the distinct ones sooner than numpy: those of a request."""


class JaggedCodes(NamedTuple):
    """Codes of one key, bag after bag, without empty bags at the end."""

    values: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Histories:
    """What the store says about some impressions."""

    pool_index: np.ndarray
    """Pooled history of each impression, [B]."""
    counts: np.ndarray
    """Behaviours in the category by segment, then those on the item itself, [B, 2 K]."""
    bags: dict[str, JaggedCodes] = field(default_factory=dict)
    """Codes of behaviours by key of the layout."""
    gated: SequenceColumns | None = None
    recent: SequenceColumns | None = None
    stranger: SequenceColumns | None = None


class HistoryReader:
    """Looks histories up in the store."""

    def __init__(
        self,
        store: BehaviourSource,
        layout: FeatureLayout,
        *,
        max_length: int,
        owner: str = "user_id",
    ) -> None:
        """Make a reader.

        Args:
            store: the behaviours.
            layout: says which forms are wanted.
            max_length: behaviours of a sequence, the most recent ones.
            owner: request column that says whose behaviours in the store count.
        """
        self._store = store
        self._layout = layout
        self._max_length = max_length
        self._owner = owner

    def read(self, impressions: Impressions, *, draw: int | None) -> Histories:
        """All wanted forms.

        Args:
            impressions: the impressions.
            draw: names this training and epoch, which draw parts of histories and strangers of
                their own; None: nothing is drawn.

        Raises:
            DatasetError: the history is damaged.
        """
        lookup, segments = self._layout.history, self._layout.count_segments
        count = len(impressions.request_index)
        index = np.zeros(count, dtype=np.int64)
        counts = np.zeros((count, 0 if segments is None else 2 * len(segments) + 2), np.float32)
        bags: dict[str, JaggedCodes] = {}
        gated, recent, stranger = None, None, None
        sums = lookup.pool_segments is not None or segments is not None or lookup.part
        if lookup.gated or sums:
            index, group = self._gated(impressions, at_most=None if sums else self._max_length)
            if segments is not None:
                counts = _counts(group, segments, index, impressions.candidate["item_id"])
            if lookup.pool_segments is not None:
                bags |= _by_recency(group, lookup.pool_segments)
                if self._layout.dayparts > 1:
                    bags |= _by_daypart(group, self._layout.dayparts)
            if lookup.part:
                request_id = impressions.request["request_id"]
                bags |= _part(group, request_id, draw, dayparts=self._layout.dayparts)
            if lookup.gated:
                gated = self._sequence("gated", group.last(self._max_length), index, bags)
        if lookup.whole:
            group = self._recent(impressions, at_most=None)
            bags[WHOLE_KEY] = JaggedCodes(group.items, group.slices.lengths)
        if lookup.recent:
            longest = lookup.longest_recent(self._max_length)
            if lookup.clustered:
                group = self._recent(impressions, at_most=None)
                recent = self._clusters(group, longest, impressions.request_index, bags)
            else:
                group = self._recent(impressions, at_most=longest)
                recent = self._sequence("recent", group, impressions.request_index, bags)
        if lookup.stranger:
            group = self._strangers(impressions, draw)
            columns = self._sequence("stranger", group, impressions.request_index, bags)
            stranger = None if draw is None else columns
        return Histories(index, counts, bags, gated, recent, stranger)

    def _gated(
        self, impressions: Impressions, *, at_most: int | None
    ) -> tuple[np.ndarray, "_Group"]:
        """Category gate (paper eq. 2) once per (request, category); group of each impression."""
        request = impressions.request_index
        category = np.zeros(len(request), dtype=np.int64)
        if self._layout.category_key is not None:
            category = impressions.candidate[self._layout.category_key].astype(np.int64)
        groups, index = _distinct((request << _CODE_BITS) | category)
        request, category = groups >> _CODE_BITS, groups & _CODE_MASK
        before = impressions.request["timestamp"][request]
        behaviours, slices = self._store.gated(
            impressions.request[self._owner][request], category, before
        )
        if at_most is not None:
            slices = slices.last(at_most)
        behaviours.check(slices, before)
        return index, _Group(behaviours, slices, request, before, category)

    def _recent(self, impressions: Impressions, *, at_most: int | None) -> "_Group":
        before = impressions.request["timestamp"]
        behaviours, slices = self._store.recent(impressions.request[self._owner], before)
        if at_most is not None:
            slices = slices.last(at_most)
        behaviours.check(slices, before)
        request = np.arange(len(before))
        return _Group(behaviours, slices, request, before, category=None)

    def _strangers(self, impressions: Impressions, draw: int | None) -> "_Group":
        """Recent history of another user for each request; empty ones without a draw."""
        before = impressions.request["timestamp"]
        if draw is None:
            stranger = np.zeros(len(before), dtype=np.int64)
        else:
            stranger = draw_strangers(
                self._store,
                user=impressions.request[self._owner],
                before=before,
                request_id=impressions.request["request_id"],
                draw=draw,
                num_users=self._layout.num_users,
            )
        behaviours, slices = self._store.recent(stranger, before)
        # Code 0 is nobody.
        slices = replace(slices, stop=np.where(stranger > 0, slices.stop, slices.start))
        slices = slices.last(self._layout.history.longest_recent(self._max_length))
        behaviours.check(slices, before)
        return _Group(behaviours, slices, np.arange(len(before)), before, category=None)

    def _sequence(
        self, slot: str, group: "_Group", sequence: np.ndarray, bags: dict[str, JaggedCodes]
    ) -> SequenceColumns:
        """Columns of the sequences; adds their codes to `bags`."""
        rows, lengths = group.slices.rows(), group.slices.lengths
        item, category = self._add_codes(slot, group, group.items, rows, lengths, bags)
        age_ms = np.repeat(group.before, lengths) - np.asarray(group.behaviours.timestamp[rows])
        attributes = self._attributes(group, rows)
        return SequenceColumns(
            item, category, 1e-3 * age_ms, lengths, sequence, attributes=attributes
        )

    def _clusters(
        self, group: "_Group", at_most: int, sequence: np.ndarray, bags: dict[str, JaggedCodes]
    ) -> SequenceColumns:
        """As _sequence, a cluster in place of a behaviour."""
        found = clusters_before(group.behaviours, group.slices, group.before, at_most=at_most)
        items = np.asarray(group.behaviours.item[found.row])
        item, category = self._add_codes("recent", group, items, found.row, found.lengths, bags)
        return SequenceColumns(
            item,
            category,
            1e-3 * found.age_ms,
            found.lengths,
            sequence,
            size=found.size,
            attributes=self._attributes(group, found.row),
        )

    def _attributes(self, group: "_Group", rows: np.ndarray) -> np.ndarray | None:
        behaviours = group.behaviours
        return attribute_matrix(
            self._layout.attributes,
            behaviours.attributes,
            rows,
            timestamp=behaviours.timestamp,
            dayparts=self._layout.dayparts,
        )

    def _add_codes(
        self,
        slot: str,
        group: "_Group",
        item: np.ndarray,
        rows: np.ndarray,
        lengths: np.ndarray,
        bags: dict[str, JaggedCodes],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds the codes of some rows, with these items, to `bags`; items and categories."""
        behaviours = group.behaviours
        category = np.zeros(len(rows), dtype=np.int64)
        if behaviours.category is not None:
            category = np.asarray(behaviours.category[rows])
        elif group.category is not None:
            category = np.repeat(group.category, lengths)
        bags[f"{slot}_item"] = JaggedCodes(item, lengths)
        bags[f"{slot}_category"] = JaggedCodes(category, lengths)
        if behaviours.action is not None:
            bags[f"{slot}_action"] = JaggedCodes(np.asarray(behaviours.action[rows]), lengths)
        of_attributes = attribute_codes(self._layout.attributes, behaviours.attributes, rows)
        for column, codes in of_attributes.items():
            bags[f"{slot}_{column}"] = JaggedCodes(codes, lengths)
        return item, category


@dataclass(frozen=True)
class _Group:
    """Histories that were found."""

    behaviours: Behaviours
    slices: Slices
    request: np.ndarray
    """Request of each history."""
    before: np.ndarray
    """Moment of each history's request."""
    category: np.ndarray | None
    """Category of each history, if it is gated."""
    whole: "_Group | None" = None
    """The histories whose ends these are."""

    @cached_property
    def _by_segments(self) -> dict[tuple[int, ...], Slices]:
        return {}

    def by_recency(self, segments: tuple[int, ...]) -> Slices:
        """The most recent behaviours in K segments, the last one of all older ones; [K * Q]."""
        found = self._by_segments
        if segments not in found:
            found[segments] = _segments_of(self.slices, segments)
        return found[segments]

    def last(self, count: int) -> "_Group":
        """Only the `count` most recent behaviours of each history."""
        return replace(self, slices=self.slices.last(count), whole=self)

    @cached_property
    def items(self) -> np.ndarray:
        """Items of all histories, one after the other, read once."""
        if self.whole is not None:
            return self.whole.items_of(self.slices)
        return np.asarray(self.behaviours.item[self.slices.rows()])

    def items_of(self, part: Slices) -> np.ndarray:
        """Items of K parts of each history, [K * Q] slices."""
        if np.array_equal(part.lengths, self.slices.lengths):
            return self.items
        shift = self.slices.ends - self.slices.stop
        edges = (edge.reshape(-1, len(shift)) + shift for edge in (part.start, part.stop))
        return self.items[Slices(*(edge.ravel() for edge in edges)).rows()]


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of some keys, rising, and the place of each key among them, int64."""
    if len(keys) > _FEW:
        return np.unique(keys, return_inverse=True)
    distinct = np.array(sorted(set(keys.tolist())), dtype=np.int64)
    return distinct, distinct.searchsorted(keys)


@cache
def _edges(segments: tuple[int, ...]) -> np.ndarray:
    """Where each of K segments begins, counted from the most recent behaviour, [K]."""
    return np.cumsum((0, *segments))


def _segments_of(slices: Slices, segments: tuple[int, ...]) -> Slices:
    """The most recent behaviours in K segments, the last one of all older ones; [K * Q] slices."""
    skipped = _edges(segments)[:, None]
    stop = np.maximum(slices.stop - skipped, slices.start)
    start = np.concatenate([stop[1:], slices.start[None]])  # where the older ones stop
    return Slices(start.ravel(), stop.ravel())


def _pooled(key: str, items: np.ndarray, lengths: np.ndarray) -> dict[str, JaggedCodes]:
    """Items to be pooled, of all histories in segment 0, in segment 1 ...; lengths [K, Q]."""
    ends = lengths.sum(axis=1).cumsum().tolist()
    return {
        f"{key}_{k}": JaggedCodes(items[start:stop], own)
        for k, (start, stop, own) in enumerate(zip([0, *ends[:-1]], ends, lengths, strict=True))
    }


def _by_recency(group: _Group, segments: tuple[int, ...]) -> dict[str, JaggedCodes]:
    """Items of each history by recency, to be pooled."""
    parts = group.by_recency(segments)
    items = group.items_of(parts)
    return _pooled(POOL_KEY, items, parts.lengths.reshape(len(segments) + 1, -1))


def _by_daypart(group: _Group, dayparts: int) -> dict[str, JaggedCodes]:
    """Items of each history by the time of day, to be pooled."""
    timestamp = np.asarray(group.behaviours.timestamp[group.slices.rows()])
    split = split_by_daypart(group.items, group.slices.lengths, timestamp, dayparts)
    return _pooled(DAYPART_KEY, *split)


def _part(
    group: _Group, request_id: np.ndarray, draw: int | None, *, dayparts: int
) -> dict[str, JaggedCodes]:
    """A random part of each gated history, the same wherever the request is read, by daypart."""
    assert group.category is not None
    if draw is None:
        nothing = np.zeros(0, dtype=np.int64)
        return _pooled(PART_KEY, nothing, np.zeros((dayparts, 0), dtype=np.int64))
    request = request_id[group.request].astype(np.int64)
    key = impression_key(request, group.category, draw)
    rows, lengths = draw_part(group.slices, key)
    items = np.asarray(group.behaviours.item[rows])
    if dayparts == 1:
        return _pooled(PART_KEY, items, lengths[None])
    timestamp = np.asarray(group.behaviours.timestamp[rows])
    return _pooled(PART_KEY, *split_by_daypart(items, lengths, timestamp, dayparts))


def _counts(
    group: _Group, segments: tuple[int, ...], index: np.ndarray, item_id: np.ndarray
) -> np.ndarray:
    """Behaviours of each impression's history by segment, then those on its item, [B, 2 K]."""
    num_segments = len(segments) + 1
    by_segment = group.by_recency(segments).lengths.reshape(num_segments, -1)
    lengths = by_segment.T[index].astype(np.float32)
    if not len(index):
        return np.concatenate([lengths, lengths], axis=1)
    if len(index) * len(group.items) <= _MOST_PAIRS:
        owner = np.arange(len(group.slices.start)).repeat(group.slices.lengths)
        is_match = (group.items == item_id[:, None]) & (owner == index[:, None])
        found, places = is_match.nonzero()
        owner, num_found, place = owner[places], len(index), slice(None)
    else:
        found, places, owner, num_found, place = _search(group, index, item_id)
    recency = group.slices.ends[owner] - 1 - places
    segment = _edges(segments)[1:].searchsorted(recency, side="right")
    cell = found * num_segments + segment
    counts = np.bincount(cell, minlength=num_found * num_segments).reshape(-1, num_segments)
    return np.concatenate([lengths, counts[place].astype(np.float32)], axis=1)


def _search(
    group: _Group, index: np.ndarray, item_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
    """Behaviours on the items of the impressions that read their history.

    Returns:
        Number of the pair of history and item of each such behaviour, its place among all
        behaviours, its history; how many pairs there are, and the pair of each impression.
    """
    wanted, place = _distinct((index << _CODE_BITS) | item_id)
    # A look into a small table spares nearly all behaviours the search, however long histories are.
    is_wanted = np.zeros(_BUCKETS, dtype=bool)
    is_wanted[item_id % _BUCKETS] = True
    places = np.flatnonzero(is_wanted[group.items % _BUCKETS])
    owner = group.slices.ends.searchsorted(places, side="right")
    key = (owner << _CODE_BITS) | group.items[places]
    found = np.minimum(np.searchsorted(wanted, key), len(wanted) - 1)
    is_match = wanted[found] == key
    return found[is_match], places[is_match], owner[is_match], len(wanted), place
