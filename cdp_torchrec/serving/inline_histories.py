"""Behaviours that requests bring along, offered as the history store offers stored ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cdp_torchrec.data.history.behaviour_clusters import alike_columns, assign_clusters
from cdp_torchrec.data.history.store import Behaviours, Slices


@dataclass(frozen=True)
class EncodedHistory:
    """Codes of one request's behaviours, int64 [L] each, in any order."""

    item: np.ndarray
    timestamp: np.ndarray
    category: np.ndarray | None
    """None where the dataset has no gate."""
    action: np.ndarray | None
    """None where the dataset has no action types."""
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By name, as the store has them: numbers float32 [L], ids int64 [L, max_ids]."""


class InlineHistories:
    """As HistoryStore, but whose "user" is the number of the request.

    Each order is made when it is first asked for: most models ask for one of them.
    """

    def __init__(self, histories: list[EncodedHistory], *, clustered: bool) -> None:
        """Put the behaviours of all requests together.

        Args:
            histories: of each request.
            clustered: whether to find the clusters of behaviours, for a model that reads them.
        """
        lengths = [len(history.item) for history in histories]
        self._owner = np.repeat(np.arange(len(histories)), lengths)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._item = np.concatenate([h.item for h in histories])
        self._timestamp = np.concatenate([h.timestamp for h in histories])
        self._category = _joined([h.category for h in histories])
        self._action = _joined([h.action for h in histories])
        self._attributes = {
            name: np.concatenate([h.attributes[name] for h in histories])
            for name in histories[0].attributes
        }
        self._clustered = clustered

    @cached_property
    def _order(self) -> np.ndarray:
        """Like the preparation's: by time, and by codes within one moment."""
        columns = (self._action, self._category, self._item)
        ties = [column for column in columns if column is not None]
        return np.lexsort((*_last_ties(self._attributes), *ties, self._timestamp, self._owner))

    @cached_property
    def _by_time(self) -> Behaviours:
        found = self._ordered(self._order, self._category)
        if not self._clustered:
            return found
        alike = alike_columns(found.item, found.category, found.action)
        # The order leaves each behaviour to its owner.
        clusters = assign_clusters(self._owner, [codes[:] for codes in alike])
        return replace(found, cluster=clusters)

    @cached_property
    def _by_category(self) -> "_Gated | None":
        """None where the dataset has no gate."""
        if self._category is None:
            return None
        span = int(self._category.max(initial=0)) + 1
        keys = (self._owner * span + self._category)[self._order]
        place = np.argsort(keys, kind="stable")
        return _Gated(span, keys[place], self._ordered(self._order[place], category=None))

    def _ordered(self, order: np.ndarray, category: np.ndarray | None) -> Behaviours:
        return Behaviours(
            item=self._item[order],
            timestamp=self._timestamp[order],
            action=None if self._action is None else self._action[order],
            category=None if category is None else category[order],
            attributes={name: values[order] for name, values in self._attributes.items()},
        )

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """All behaviours of each request strictly before a time."""
        slices = Slices(self._offsets[user], self._offsets[user + 1])
        return self._by_time, _before(self._by_time, slices, before)

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """Those in one category; a missing category (0) matches nothing."""
        found = self._by_category
        if found is None:
            return self.recent(user, before)
        key = user * found.span + category
        start = np.searchsorted(found.keys, key)
        stop = np.searchsorted(found.keys, key, side="right")
        stop = np.where((category > 0) & (category < found.span), stop, start)
        slices = Slices(start, stop)
        return found.behaviours, _before(found.behaviours, slices, before)


@dataclass(frozen=True)
class _Gated:
    """All behaviours by request and category."""

    span: int
    """One more than the largest category."""
    keys: np.ndarray
    """Request times span plus category of each behaviour, rising, [L]."""
    behaviours: Behaviours


def _last_ties(attributes: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What orders behaviours that agree in all else, the least important first."""
    numbers = [values for values in attributes.values() if values.ndim == 1]
    ids = [column for values in attributes.values() if values.ndim == 2 for column in values.T]
    return [*ids, *numbers][::-1]


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def _before(behaviours: Behaviours, slices: Slices, before: np.ndarray) -> Slices:
    """Behaviours.before looks at row 0 even for empty slices, and here there may be no row."""
    return behaviours.before(slices, before) if len(behaviours.item) else slices
