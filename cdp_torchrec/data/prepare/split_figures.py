"""The figures of one split, added up row group by row group."""

# R requests and n impressions of a row group

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash

from cdp_torchrec.data.clocks import Clock
from cdp_torchrec.data.history.segments import SegmentedHistory
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.prepare.dataset_files import values
from cdp_torchrec.data.prepare.leaks import LeakMeter
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.summary import Figure

_LEAK_IMPRESSIONS = 50_000
"""About so many impressions are searched for leaks."""
_LONGEST = 1 << 16
"""Histories are told apart up to this length."""
_PLACES = 1000
_QUANTILES = {"median": 0.5, "p90": 0.9}
_PLACE, _LAST_TOUCHED = "candidate place", "last touched"


@dataclass
class Lengths:
    """How often each length occurs."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, lengths: np.ndarray) -> None:
        """Add lengths."""
        new = np.bincount(np.minimum(lengths, _LONGEST), minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new

    def quantile(self, share: float) -> Figure:
        """The smallest length that this share of all does not exceed."""
        total = int(self.counts.sum())
        place = np.searchsorted(np.cumsum(self.counts), share * total)
        return Figure(float(place if total else 0), total)


@dataclass
class Cells:
    """The values of a feature in a split."""

    total: int = 0
    missing: int = 0
    unseen: int = 0
    """Ids that never occur in training."""
    low: float = float("inf")
    high: float = -float("inf")

    def add(self, column: np.ndarray, *, seen: int) -> None:
        """Add codes, of which the first `seen` occur in training, or numbers."""
        missing = np.isnan(column) if column.dtype.kind == "f" else column == 0
        known = column[~missing]
        self.total += len(column)
        self.missing += len(column) - len(known)
        if column.dtype.kind != "f":
            self.unseen += int((known > seen).sum())
        if len(known):
            self.low = min(self.low, float(known.min()))
            self.high = max(self.high, float(known.max()))

    @property
    def is_constant(self) -> bool:
        """There is one value at most, and nothing else."""
        return self.missing == self.total or (self.missing == 0 and self.low == self.high)


class Repeats:
    """How many digests were there before; of very many, judged by a sample of the digests.

    Equal requests have equal digests, so that a sample by digest has all or none of them.
    """

    def __init__(self, *, most: int = 1 << 21) -> None:
        """Args: different digests that are kept; memory is bounded by it."""
        self._most = most
        self._every = 1
        self._new: list[np.ndarray] = []
        self._waiting = 0
        self._digests, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, digests: np.ndarray) -> None:
        """Add digests, int64."""
        self._new.append(digests[digests % self._every == 0])
        self._waiting += len(self._new[-1])
        if self._waiting > self._most:
            self._gather()

    def share(self) -> float:
        """Share of them that repeat another one."""
        self._gather()
        total = int(self._counts.sum())
        return (total - len(self._digests)) / max(total, 1)

    def _gather(self) -> None:
        """Count what is waiting, and keep fewer digests if they are too many."""
        new = np.concatenate([*self._new, self._digests])
        weights = np.ones(len(new), np.int64)
        weights[len(new) - len(self._digests) :] = self._counts
        self._digests, place = np.unique(new, return_inverse=True)
        self._counts = np.bincount(place, weights, len(self._digests)).astype(np.int64)
        self._new, self._waiting = [], 0
        while len(self._digests) > self._most:
            self._every *= 2
            kept = self._digests % self._every == 0
            self._digests, self._counts = self._digests[kept], self._counts[kept]


class SplitFigures:
    """Everything that a pass over the requests of a split finds."""

    def __init__(
        self,
        schema: Schema,
        store: HistoryStore | SegmentedHistory,
        seen: Mapping[str, int],
        *,
        with_leaks: bool,
    ) -> None:
        """Begin with nothing.

        Args:
            schema: of the dataset.
            store: its behaviours.
            seen: ids that are known, those with a training count, by entity: the first codes.
            with_leaks: whether columns are compared with the label.
        """
        self._schema = schema
        self._store = store
        self._seen = seen
        self._gate = schema.gate_feature()
        self._has_behaviours = store.behaviours_of_users() > 0
        self._leaks = LeakMeter() if with_leaks else None
        ids = [feature for feature in schema.features if feature.kind == "id"]
        self._pairs = [
            (first.name, second.name)
            for first in ids
            for second in ids
            if first.entity == second.entity
            and (first.level, second.level) == ("request", "candidate")
        ]
        self._searched = self._rows = 0
        self._repeats = Repeats()
        self._history, self._gated, self._candidates = Lengths(), Lengths(), Lengths()
        self._requests = self._impressions = self._clicks = self._both = 0
        self._known = self._empty = self._late = 0
        self._with_history = self._passed = 0
        self.clock = Clock()
        self.cells = {feature.name: Cells() for feature in schema.features}
        self.requests_of_users = np.zeros(len(self._has_behaviours), np.int64)
        items = schema.entities[schema.history.item_entity].num_ids
        categories = schema.entities[schema.history.category_entity or "user"].num_ids
        self.shown_items = np.zeros(items + 1, dtype=bool)
        self.shown_categories = np.zeros(categories + 1, dtype=bool)

    @property
    def columns(self) -> list[str]:
        """Columns that `add` reads."""
        own = ["user_id", "timestamp", "history_length", "label", "history_rank"]
        return list(dict.fromkeys([*own, *(f.name for f in self._schema.features)]))

    def add(self, table: pa.Table, *, of: int) -> None:
        """Add a row group of a split of so many impressions."""
        label, rank = values(table, "label"), values(table, "history_rank")
        lengths = table["label"].combine_chunks().value_lengths().to_numpy().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        user, timestamp = table["user_id"].to_numpy(), table["timestamp"].to_numpy()
        history = table["history_length"].to_numpy()
        features = {f.name: values(table, f.name) for f in self._schema.features}
        item = features["item_id"]

        self._requests += len(user)
        self._impressions += len(label)
        clicks = np.add.reduceat(label.astype(np.int64), starts)
        self._clicks += int(clicks.sum())
        self._both += int(((clicks > 0) & (clicks < lengths)).sum())
        self._candidates.add(lengths)
        self._history.add(history)
        known = self._has_behaviours[user]
        self._known += int(known.sum())
        self._empty += int((history == 0).sum())
        self._late += int((known & (history == 0)).sum())
        self.clock.add(timestamp)
        np.add.at(self.requests_of_users, user, 1)  # as much work as there are requests
        self.shown_items[item] = True
        for feature in self._schema.features:
            self.cells[feature.name].add(
                features[feature.name], seen=self._seen.get(feature.entity or "", 0)
            )
        self._repeats.add(digests_of_requests(user, timestamp, item, label, lengths))
        if self._gate is not None:
            category = features[self._gate]
            self.shown_categories[category] = True
            self._add_gate(user, category, timestamp, history, lengths)
        if self._leaks is not None:
            self._add_leaks(features, label, rank, lengths, of)

    def _add_gate(
        self,
        user: np.ndarray,
        category: np.ndarray,
        before: np.ndarray,
        history: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        index = np.repeat(np.arange(len(lengths)), lengths)
        _, slices = self._store.gated(user[index], category, before[index])
        gated = slices.lengths[history[index] > 0]
        self._with_history += len(gated)
        self._passed += int((gated > 0).sum())
        self._gated.add(gated)

    def _add_leaks(
        self,
        features: Mapping[str, np.ndarray],
        label: np.ndarray,
        rank: np.ndarray,
        lengths: np.ndarray,
        impressions: int,
    ) -> None:
        """Search row groups that are spread over the split."""
        assert self._leaks is not None
        request = self._rows + np.repeat(np.arange(len(lengths)), lengths)
        self._rows += len(lengths)
        wanted = _LEAK_IMPRESSIONS * self._impressions / max(impressions, 1)
        if self._searched > wanted:
            return
        self._searched += len(label)
        place = np.arange(len(label)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = {_PLACE: np.minimum(place, _PLACES), _LAST_TOUCHED: np.minimum(rank, _PLACES)}
        for feature in self._schema.features:
            if feature.kind != "ids":
                column = features[feature.name]
                wide = feature.level == "candidate"
                columns[feature.name] = column if wide else np.repeat(column, lengths)
        # A request may name the candidate that was clicked.
        for first, second in self._pairs:
            columns[f"{first} = {second}"] = (columns[first] == columns[second]).astype(np.int64)
        self._leaks.add(columns, label, request)

    def leaks(self) -> dict[str, dict[str, Figure]]:
        """How well one column alone tells the clicks."""
        found = self._leaks.figures() if self._leaks else {}
        named = {"order_leak": _PLACE, "history_leak": _LAST_TOUCHED}
        figures = {name: {of: found.pop(of)} for name, of in named.items() if of in found}
        return figures | {"leak": found}

    def new_users(self, seen: int) -> Figure:
        """Share of the requests whose user does not occur in training."""
        return _share(self.requests_of_users[seen + 1 :].sum(), self._requests)

    def figures(self) -> dict[str, Figure]:
        """All others, by name."""
        figures = {
            "requests": Figure(self._requests, self._requests),
            "impressions": Figure(self._impressions, self._impressions),
            "click_rate": _share(self._clicks, self._impressions),
            "both_labels": _share(self._both, self._requests),
            "one_candidate": _share(self._candidates.counts[1:2].sum(), self._requests),
            "candidates": Figure(self._impressions / self._requests, self._requests),
            "repeated_requests": Figure(self._repeats.share(), self._requests),
        }
        for name, share in _QUANTILES.items():
            figures[f"history_{name}"] = self._history.quantile(share)
        if self._has_behaviours.any():
            # A few behaviours prove nothing about many requests.
            behaviours = self._schema.history.num_behaviours
            for name, part, whole in (
                ("known_users", self._known, self._requests),
                ("empty_history", self._empty, self._requests),
                ("late_behaviours", self._late, self._known),
            ):
                figures[name] = Figure(part / max(whole, 1), min(whole, behaviours))
            if self._gate is not None:
                figures["gate_passed"] = _share(self._passed, self._with_history)
                for name, share in _QUANTILES.items():
                    figures[f"gated_{name}"] = self._gated.quantile(share)
        return figures


def _share(part: float, whole: int) -> Figure:
    return Figure(float(part) / max(whole, 1), whole)


def digests_of_requests(
    user: np.ndarray,
    timestamp: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """64 bits of each request, [R], that equal requests share, others only by chance."""
    cells = (2 * item.astype(np.int64) + label).tobytes()
    ends = (8 * np.cumsum(lengths)).tolist()
    # Not Python's hash, which is another one in each process: the figures of a log are the same.
    names = np.stack([user, timestamp], axis=1).astype(np.int64).tobytes()
    digest = xxhash.xxh3_64_intdigest
    digests = [
        digest(names[16 * place : 16 * place + 16] + cells[start:end])
        for place, (start, end) in enumerate(pairwise([0, *ends]))
    ]
    return np.array(digests, dtype=np.uint64).view(np.int64)
