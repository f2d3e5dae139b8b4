"""The golden request of an artifact: its scores tell whether it still computes what it did."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.schema import HistorySchema
from cdp_torchrec.serving.encode import USER_ENTITY
from cdp_torchrec.serving.encode_attributes import raw_attributes
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.vocabulary import Vocabulary

GOLDEN_TOLERANCE = 1e-5
"""Largest difference in probability: another machine may sum in another order."""


@dataclass(frozen=True)
class GoldenRequest:
    """A request with its behaviours, so that it needs no store, and its scores."""

    request: Request
    probabilities: np.ndarray
    """Float32 [C]."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"request": asdict(self.request), "probabilities": self.probabilities.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "GoldenRequest":
        """What `to_json` gave."""
        request = data["request"]
        history = None if request["history"] is None else Behaviours(**request["history"])
        return cls(
            Request(**request | {"history": history}),
            np.array(data["probabilities"], dtype=np.float32),
        )


def stored_behaviours(
    request: Request,
    store: BehaviourSource,
    schema: HistorySchema,
    vocabularies: Mapping[str, Vocabulary],
    *,
    at_most: int,
) -> Behaviours:
    """The behaviours of a request's user that happened before it, the most recent ones.

    Args:
        request: without behaviours.
        store: the behaviours.
        schema: their entities.
        vocabularies: by entity.
        at_most: behaviours to bring.
    """
    user = vocabularies[USER_ENTITY].codes([request.user], field="user")
    behaviours, slices = store.recent(user, np.array([request.timestamp_ms]))
    rows = slices.last(at_most).rows()

    def raw(codes: Column | None, entity: str | None) -> list[str | None] | None:
        return None if codes is None or entity is None else vocabularies[entity].raw(codes[rows])

    return Behaviours(
        item=vocabularies[schema.item_entity].raw(behaviours.item[rows]),
        timestamp_ms=behaviours.timestamp[rows].tolist(),
        category=raw(behaviours.category, schema.category_entity),
        action=raw(behaviours.action, schema.action_entity),
        attributes=raw_attributes(
            {name: values[rows] for name, values in behaviours.attributes.items()},
            schema.attributes,
            vocabularies,
        ),
    )
