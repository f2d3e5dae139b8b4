"""From raw requests to the impressions that batches are assembled from; every value is checked."""

# C candidates of a request, L behaviours

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cdp_torchrec.data.request_files import Impressions, ListColumn
from cdp_torchrec.data.schema import (
    EARLIEST_DATE_MS,
    LATEST_TIMESTAMP_MS,
    USER_ENTITY,
    Feature,
    Schema,
)
from cdp_torchrec.serving.encode_attributes import encode_attributes
from cdp_torchrec.serving.inline_histories import EncodedHistory
from cdp_torchrec.serving.keys import request_number
from cdp_torchrec.serving.request import Behaviours, Request, RequestError
from cdp_torchrec.serving.values import listed, numbers
from cdp_torchrec.serving.vocabulary import Vocabulary

USER_FEATURE = "user_id"
LONGEST_BAG = 10_000


@dataclass(frozen=True)
class EncodedRequest:
    """One request in codes and numbers."""

    request_id: int
    user: int
    timestamp: int
    request: dict[str, int | float]
    """Request features but bags."""
    bags: dict[str, np.ndarray]
    candidate: dict[str, np.ndarray]
    """[C] each."""
    history: EncodedHistory | None

    @property
    def num_candidates(self) -> int:
        """C."""
        return len(self.candidate["item_id"])


class RequestEncoder:
    """Checks requests against a schema and encodes them with its vocabularies."""

    def __init__(
        self,
        schema: Schema,
        vocabularies: Mapping[str, Vocabulary],
        *,
        max_candidates: int,
        max_history: int,
    ) -> None:
        """Make an encoder.

        Args:
            schema: features, and what behaviours consist of.
            vocabularies: by entity.
            max_candidates: longest candidate list.
            max_history: most behaviours that a request may bring.
        """
        self._schema = schema
        self._vocabularies = vocabularies
        self.max_candidates = max_candidates
        self.max_history = max_history
        self.num_ids = {entity: len(known) for entity, known in vocabularies.items()}
        self._features = {f.name: f for f in schema.features if f.name != USER_FEATURE}
        self._of_request = [f for f in self._features.values() if f.level == "request"]
        self._of_candidate = [f for f in self._features.values() if f.level == "candidate"]
        gate = schema.gate_feature()
        self.required = ("item_id",) if gate is None else ("item_id", gate)
        # Requests come late and behaviours are old, but not in a log of real dates by decades.
        has_dates = schema.splits["train"].first_timestamp >= EARLIEST_DATE_MS
        self._earliest_ms = EARLIEST_DATE_MS if has_dates else 0

    def encode(self, request: Request) -> EncodedRequest:
        """Codes of one request.

        Raises:
            RequestError: a value is missing, unknown, of the wrong type, or out of range.
        """
        self._check_names("features", request.features, level="request")
        self._check_names("candidates", request.candidates, level="candidate")
        timestamp = self._moment(request.timestamp_ms, "timestamp_ms")
        num_candidates = self._num_candidates(request)
        single: dict[str, int | float] = {}
        bags: dict[str, np.ndarray] = {}
        for feature in self._of_request:
            field = f"features.{feature.name}"
            value = request.features.get(feature.name)
            if feature.kind == "ids":
                values = [] if value is None else listed(value, field, at_most=LONGEST_BAG)
                bags[feature.name] = self._codes(feature.entity, values, field)
            else:
                single[feature.name] = self._column(feature, [value], field)[0]
        return EncodedRequest(
            request_id=request_number(request.request_id),
            user=int(self._codes(USER_ENTITY, [request.user], "user")[0]),
            timestamp=timestamp,
            request=single,
            bags=bags,
            candidate={
                feature.name: self._column(
                    feature,
                    request.candidates.get(feature.name, [None] * num_candidates),
                    f"candidates.{feature.name}",
                )
                for feature in self._of_candidate
            },
            history=None if request.history is None else self._history(request.history, timestamp),
        )

    def _check_names(self, group: str, given: object, *, level: str) -> None:
        if not isinstance(given, Mapping):
            raise RequestError(group, f"expected values by name, found {type(given).__name__}")
        for name in given:
            feature = self._features.get(name)
            if name == USER_FEATURE:
                raise RequestError(f"{group}.{name}", "is given as the request's `user`")
            if feature is None or feature.level != level:
                allowed = [f.name for f in self._features.values() if f.level == level]
                raise RequestError(f"{group}.{name}", f"no such feature; allowed: {allowed}")

    def _num_candidates(self, request: Request) -> int:
        for name in self.required:
            if name not in request.candidates:
                raise RequestError(f"candidates.{name}", "is required")
        lengths = {
            name: len(listed(values, f"candidates.{name}", at_most=self.max_candidates))
            for name, values in request.candidates.items()
        }
        count = lengths["item_id"]
        if count == 0:
            raise RequestError("candidates.item_id", "the list is empty")
        for name, length in lengths.items():
            if length != count:
                raise RequestError(
                    f"candidates.{name}", f"{length} values, but there are {count} items"
                )
        return count

    def _column(self, feature: Feature, values: Iterable[object], field: str) -> np.ndarray:
        if feature.kind != "number":
            return self._codes(feature.entity, values, field)
        return numbers(values, field)

    def _codes(self, entity: str | None, values: Iterable[object], field: str) -> np.ndarray:
        assert entity is not None
        return self._vocabularies[entity].codes(values, field=field)

    def _moment(self, value: object, field: str) -> int:
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise RequestError(field, f"expected an integer, found {type(value).__name__}")
        if not self._earliest_ms <= value <= LATEST_TIMESTAMP_MS:
            raise RequestError(
                field,
                f"expected milliseconds since the epoch, from {self._earliest_ms} to "
                f"{LATEST_TIMESTAMP_MS}, found {value}",
            )
        return int(value)

    def _history(self, history: Behaviours, before: int) -> EncodedHistory:
        entities = {
            "item": self._schema.history.item_entity,
            "category": self._schema.history.category_entity,
            "action": self._schema.history.action_entity,
        }
        times = listed(history.timestamp_ms, "history.timestamp_ms", at_most=self.max_history)
        columns: dict[str, np.ndarray | None] = {}
        for name, entity in entities.items():
            field, given = f"history.{name}", getattr(history, name)
            if entity is None:
                if given is not None:
                    raise RequestError(field, "the log has none")
                columns[name] = None
                continue
            if given is None and name == "item":
                raise RequestError(field, "is required beside the rest of the history")
            if given is None and name == "category":
                raise RequestError(field, "is required: the dataset gates histories by category")
            values = [None] * len(times) if given is None else given
            if len(listed(values, field, at_most=self.max_history)) != len(times):
                raise RequestError(field, f"{len(values)} values for {len(times)} behaviours")
            columns[name] = self._codes(entity, values, field)
        item = columns["item"]
        assert item is not None
        return EncodedHistory(
            item,
            _times(times, before, earliest=self._earliest_ms),
            category=columns["category"],
            action=columns["action"],
            attributes=encode_attributes(
                history.attributes,
                self._schema.history.attributes,
                self._vocabularies,
                length=len(times),
                at_most=self.max_history,
            ),
        )


def _times(values: Iterable[object], before: int, *, earliest: int) -> np.ndarray:
    field = "history.timestamp_ms"
    for value in values:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < earliest:
            raise RequestError(
                field, f"expected milliseconds since the epoch, from {earliest} on, found {value!r}"
            )
        if value >= before:
            raise RequestError(field, f"a behaviour is not before the request ({before})")
    return np.array(values, dtype=np.int64)


def collate(requests: Sequence[EncodedRequest]) -> Impressions:
    """All candidates of some requests, one request after the other; without labels."""
    counts = [len(r.candidate["item_id"]) for r in requests]
    index = np.repeat(np.arange(len(requests)), counts)
    columns = {
        "request_id": [r.request_id for r in requests],
        "user_id": [r.user for r in requests],
        "timestamp": [r.timestamp for r in requests],
    }
    columns |= {name: [r.request[name] for r in requests] for name in requests[0].request}
    candidate = {
        name: _concatenated([r.candidate[name] for r in requests]) for name in requests[0].candidate
    }
    return Impressions(
        request={name: np.array(column) for name, column in columns.items()},
        bags={name: _bag([r.bags[name] for r in requests]) for name in requests[0].bags},
        candidate=candidate,
        request_index=index,
    )


def _bag(parts: Sequence[np.ndarray]) -> ListColumn:
    lengths = [len(part) for part in parts]
    return ListColumn(_concatenated(parts), np.array([0, *accumulate(lengths)]))


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
