"""Behaviours that requests bring along, offered as the history store offers stored ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from cdp_torchrec.data.behaviour_clusters import alike_columns, assign_clusters
from cdp_torchrec.data.history_store import Behaviours, Slices


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
    """As HistoryStore, but whose "user" is the number of the request."""

    def __init__(self, histories: list[EncodedHistory]) -> None:
        """Sort behaviours like the preparation does: by time, and by codes within one moment."""
        lengths = [len(history.item) for history in histories]
        owner = np.repeat(np.arange(len(histories)), lengths)
        item = np.concatenate([h.item for h in histories])
        timestamp = np.concatenate([h.timestamp for h in histories])
        category = _joined([h.category for h in histories])
        action = _joined([h.action for h in histories])
        attributes = {
            name: np.concatenate([h.attributes[name] for h in histories])
            for name in histories[0].attributes
        }
        ties = [column for column in (action, category, item) if column is not None]
        order = np.lexsort((*_last_ties(attributes), *ties, timestamp, owner))
        by_time = _in_order(order, item, timestamp, action, category, attributes)
        alike = alike_columns(by_time.item, by_time.category, by_time.action)
        clusters = assign_clusters(owner[order], [codes[:] for codes in alike])
        self._by_time = replace(by_time, cluster=clusters)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        if category is not None:
            self._span = int(category.max(initial=0)) + 1
            order = order[np.argsort((owner * self._span + category)[order], kind="stable")]
            self._keys = (owner * self._span + category)[order]
            self._by_category = _in_order(order, item, timestamp, action, None, attributes)
        self._has_gate = category is not None

    def recent(self, user: np.ndarray, before: np.ndarray) -> tuple[Behaviours, Slices]:
        """All behaviours of each request strictly before a time."""
        slices = Slices(self._offsets[user], self._offsets[user + 1])
        return self._by_time, _before(self._by_time, slices, before)

    def gated(
        self, user: np.ndarray, category: np.ndarray, before: np.ndarray
    ) -> tuple[Behaviours, Slices]:
        """Those in one category; a missing category (0) matches nothing."""
        if not self._has_gate:
            return self.recent(user, before)
        key = user * self._span + category
        start = np.searchsorted(self._keys, key)
        stop = np.searchsorted(self._keys, key, side="right")
        stop = np.where((category > 0) & (category < self._span), stop, start)
        slices = Slices(start, stop)
        return self._by_category, _before(self._by_category, slices, before)


def _last_ties(attributes: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What orders behaviours that agree in all else, the least important first."""
    numbers = [values for values in attributes.values() if values.ndim == 1]
    ids = [column for values in attributes.values() if values.ndim == 2 for column in values.T]
    return [*ids, *numbers][::-1]


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def _in_order(
    order: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray,
    action: np.ndarray | None,
    category: np.ndarray | None,
    attributes: Mapping[str, np.ndarray],
) -> Behaviours:
    return Behaviours(
        item=item[order],
        timestamp=timestamp[order],
        action=None if action is None else action[order],
        category=None if category is None else category[order],
        attributes={name: values[order] for name, values in attributes.items()},
    )


def _before(behaviours: Behaviours, slices: Slices, before: np.ndarray) -> Slices:
    """Behaviours.before looks at row 0 even for empty slices, and here there may be no row."""
    return behaviours.before(slices, before) if len(behaviours.item) else slices
