"""Histories of a run of impressions in every form that the model reads.

Sums and counts are of the whole gated history, however long; only sequences are cut.
"""

# B impressions, K recency segments

from dataclasses import dataclass, field, replace

import numpy as np

from cdp_torchrec.data.history.behaviour_clusters import clusters_before
from cdp_torchrec.data.history.behaviour_values import attribute_codes, attribute_matrix
from cdp_torchrec.data.history.distinct_keys import CODE_BITS, distinct
from cdp_torchrec.data.history.found import FoundHistories
from cdp_torchrec.data.history.sequence_index import SequenceColumns
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.history.strangers import draw_strangers
from cdp_torchrec.data.history.sums import (
    exact_counts,
    pooled_by_daypart,
    pooled_by_recency,
    pooled_part,
)
from cdp_torchrec.data.jagged_codes import JaggedCodes
from cdp_torchrec.data.layout import WHOLE_KEY, FeatureLayout
from cdp_torchrec.data.request_files import Impressions

_CODE_MASK = (1 << CODE_BITS) - 1


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
        lookup, counted = self._layout.history, self._layout.counts
        count = len(impressions.request_index)
        index = np.zeros(count, dtype=np.int64)
        counts = np.zeros((count, 0), dtype=np.float32)
        bags: dict[str, JaggedCodes] = {}
        gated, recent, stranger = None, None, None
        sums = lookup.pool_segments is not None or counted is not None or lookup.part
        if lookup.gated or sums:
            index, group = self._gated(impressions, at_most=None if sums else self._max_length)
            if counted is not None:
                counts = exact_counts(group, counted, index, impressions.candidate["item_id"])
            if lookup.pool_segments is not None:
                bags |= pooled_by_recency(group, lookup.pool_segments)
                if self._layout.dayparts > 1:
                    bags |= pooled_by_daypart(group, self._layout.dayparts)
            if lookup.part:
                request_id = impressions.request["request_id"]
                bags |= pooled_part(group, request_id, draw, dayparts=self._layout.dayparts)
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
    ) -> tuple[np.ndarray, FoundHistories]:
        """Category gate (paper eq. 2) once per (request, category); group of each impression."""
        request = impressions.request_index
        category = np.zeros(len(request), dtype=np.int64)
        if self._layout.category_key is not None:
            category = impressions.candidate[self._layout.category_key].astype(np.int64)
        groups, index = distinct((request << CODE_BITS) | category)
        request, category = groups >> CODE_BITS, groups & _CODE_MASK
        before = impressions.request["timestamp"][request]
        behaviours, slices = self._store.gated(
            impressions.request[self._owner][request], category, before
        )
        if at_most is not None:
            slices = slices.last(at_most)
        behaviours.check(slices, before)
        return index, FoundHistories(behaviours, slices, request, before, category)

    def _recent(self, impressions: Impressions, *, at_most: int | None) -> FoundHistories:
        before = impressions.request["timestamp"]
        behaviours, slices = self._store.recent(impressions.request[self._owner], before)
        if at_most is not None:
            slices = slices.last(at_most)
        behaviours.check(slices, before)
        request = np.arange(len(before))
        return FoundHistories(behaviours, slices, request, before, category=None)

    def _strangers(self, impressions: Impressions, draw: int | None) -> FoundHistories:
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
        return FoundHistories(behaviours, slices, np.arange(len(before)), before, category=None)

    def _sequence(
        self, slot: str, group: FoundHistories, sequence: np.ndarray, bags: dict[str, JaggedCodes]
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
        self,
        group: FoundHistories,
        at_most: int,
        sequence: np.ndarray,
        bags: dict[str, JaggedCodes],
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

    def _attributes(self, group: FoundHistories, rows: np.ndarray) -> np.ndarray | None:
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
        group: FoundHistories,
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
