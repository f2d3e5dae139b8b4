"""What a category gate lets through, for each candidate feature that it could go by.

The store has one category for each behaviour. Other levels of a catalogue, such as a brand or a
subcategory, are features of the candidates; where they belong to the item, a behaviour has the
value that its item had as a candidate. Measured on a sample of the test requests.
"""

# R requests, n impressions

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cdp_torchrec.data.history.store import Behaviours, BehaviourSource, Slices
from cdp_torchrec.data.prepare.split_figures import Lengths
from cdp_torchrec.data.request_files import Impressions, RequestFiles
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.describe.ranked import RankedBy
from cdp_torchrec.progress import progress

SAMPLED_REQUESTS = 10_000
"""About so many requests are looked at, spread evenly over the split."""
MOST_BEHAVIOURS = 2000
"""The latest behaviours of a history that are looked at."""
_EVERY = 64
"""Of a row group, at least every so manieth request is taken."""
_BELONGS = 0.95
"""A feature is one of the item if so many impressions have the value that the item had before."""


@dataclass
class GateLevel:
    """A gate by one feature, over impressions whose user has a history."""

    name: str
    values: int
    """Values of the feature."""
    passed: Lengths = field(default_factory=Lengths)
    """Behaviours behind the gate."""
    share: float = 0.0
    """Sum of the shares of the histories that pass."""
    impressions: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    """Without and with a click."""
    empty: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    """Of these, those whose gate lets nothing through."""
    ranked: RankedBy = field(default_factory=RankedBy)
    """By the number of behaviours behind the gate."""

    def add(
        self, count: np.ndarray, of: np.ndarray, clicked: np.ndarray, index: np.ndarray
    ) -> None:
        """Add impressions of whole requests.

        Args:
            count: behaviours behind the gate of each, [n].
            of: behaviours of the history, positive, [n].
            clicked: bool [n].
            index: request of each, [n].
        """
        self.passed.add(count)
        self.share += float((count / of).sum())
        self.impressions += np.bincount(clicked, minlength=2)
        self.empty += np.bincount(clicked[count == 0], minlength=2)
        self.ranked.add(count, clicked, index)

    @property
    def pass_rate(self) -> float:
        """Mean share of a history that passes."""
        return self.share / max(int(self.impressions.sum()), 1)

    @property
    def empty_rate(self) -> float:
        """Share of the impressions with a history whose gate lets nothing through."""
        return float(self.empty.sum()) / max(int(self.impressions.sum()), 1)


class GateLevels:
    """Learns which item has which value from both splits, then measures."""

    def __init__(self, schema: Schema) -> None:
        self._gate = schema.gate_feature()
        items = schema.entities[schema.history.item_entity].num_ids
        self._features = [
            f
            for f in schema.features
            if (f.level, f.kind, f.role) == ("candidate", "id", "item")
            and f.name not in ("item_id", self._gate)
        ]
        self._of_item = {f.name: np.zeros(items + 1, np.int32) for f in self._features}
        self._same = {f.name: 0 for f in self._features}
        self._again = {f.name: 0 for f in self._features}
        self._num_values = {
            f.name: schema.entities[f.entity].num_ids for f in schema.features if f.entity
        }

    def learn(self, part: Impressions) -> None:
        """Remember the values of the items of some impressions."""
        item = part.candidate["item_id"]
        for feature in self._features:
            of_item, value = self._of_item[feature.name], part.candidate[feature.name]
            known = of_item[item] > 0
            self._again[feature.name] += int(known.sum())
            self._same[feature.name] += int((of_item[item] == value)[known].sum())
            of_item[item] = value

    def measure(self, files: RequestFiles, store: BehaviourSource) -> list[GateLevel]:
        """The gates, those that let most through first.

        Args:
            files: the test split.
            store: the behaviours.
        """
        readers = self.readers()
        values = {name: self._num_values[name] for name in readers}
        levels = {name: GateLevel(name, number) for name, number in values.items()}
        every = max(files.num_requests // SAMPLED_REQUESTS, 1)
        # Of very many requests, not all row groups are read.
        blocks = range(0, len(files.blocks), max(every // _EVERY, 1))
        for block in progress(blocks, "gates", unit="row groups"):
            part = files.read(block)
            taken = np.arange(len(part.request["request_id"])) % min(every, _EVERY) == 0
            behaviours, slices = store.recent(part.request["user_id"], part.request["timestamp"])
            slices = slices.last(MOST_BEHAVIOURS)
            kept = taken & (slices.lengths > 0)
            slices = Slices(slices.start[kept], slices.stop[kept])
            rows, lengths = slices.rows(), slices.lengths
            owner = np.repeat(np.arange(len(lengths)), lengths)
            wanted = kept[part.request_index]
            index = (np.cumsum(kept) - 1)[part.request_index[wanted]]
            clicked = part.candidate["label"][wanted] == 1
            for name, read in readers.items():
                value = part.candidate[name][wanted]
                count = _matches(owner, read(behaviours, rows), index, value)
                levels[name].add(count, lengths[index], clicked, index)
        return sorted(levels.values(), key=lambda level: -level.pass_rate)

    def readers(self) -> dict[str, "_Reader"]:
        """What gives the value of behaviours, by the name of each feature that can be a gate."""
        readers: dict[str, _Reader] = {}
        if self._gate is not None:
            readers[self._gate] = _categories
        for feature in self._features:
            if self._same[feature.name] >= _BELONGS * max(self._again[feature.name], 1):
                readers[feature.name] = partial(_values_of_items, self._of_item[feature.name])
        readers["item_id"] = _items
        return readers


_Reader = Callable[[Behaviours, np.ndarray], np.ndarray]


def _categories(behaviours: Behaviours, rows: np.ndarray) -> np.ndarray:
    assert behaviours.category is not None
    return np.asarray(behaviours.category[rows])


def _items(behaviours: Behaviours, rows: np.ndarray) -> np.ndarray:
    return np.asarray(behaviours.item[rows])


def _values_of_items(of_item: np.ndarray, behaviours: Behaviours, rows: np.ndarray) -> np.ndarray:
    return of_item[behaviours.item[rows]]


def _matches(
    owner: np.ndarray, behaved: np.ndarray, index: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """Behaviours of the request of each impression that have its value; 0 is missing, [n]."""
    key = (owner.astype(np.int64) << 32) | behaved.astype(np.int64)
    keys, counts = np.unique(key, return_counts=True)
    if not len(keys):
        return np.zeros(len(index), np.int64)
    wanted = (index.astype(np.int64) << 32) | value.astype(np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((keys[place] == wanted) & (value > 0), counts[place], 0)
