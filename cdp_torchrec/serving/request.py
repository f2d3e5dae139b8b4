"""What a predictor is asked: one request with its candidates, in raw ids of the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RawId = str | int | bool
"""An id as the log has it; 5723076 and "5723076" are the same id, True is the id "true"."""
Value = RawId | float | None
"""An id or a number; None where it is missing."""

AttributeValue = Value | Sequence[RawId | None]
"""Of a behaviour: an id, several ids, or a number."""


class RequestError(ValueError):
    """A request cannot be scored as it is."""

    def __init__(self, field: str, problem: str) -> None:
        """Args: name of the field, such as "candidates.item_id", and what is wrong with it."""
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Behaviours:
    """A user's past actions, in any order: lists of one length."""

    item: Sequence[RawId | None]
    timestamp_ms: Sequence[int]
    """Milliseconds since the epoch, each strictly before the request."""
    category: Sequence[RawId | None] | None = None
    """Needed where the dataset gates by category; None inside: that behaviour passes no gate."""
    action: Sequence[RawId | None] | None = None
    """Action types, where the dataset has them; without: all missing."""
    attributes: Mapping[str, Sequence[AttributeValue]] = field(default_factory=dict)
    """Attributes of the dataset's behaviours by name, one element per behaviour: an id, a list of
    ids, or a number; None where it is missing. One that is not given is missing everywhere."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One result page to score.

    Names of features are those of the artifact's schema (`Predictor.metadata.features`). A feature
    that is not given is missing: an id falls on the table's row for missing ids, a number on its
    mean. An id that training never saw falls on an out-of-vocabulary row.
    """

    user: RawId | None
    """The user, also feature "user_id"; None: unknown, without a stored history."""
    timestamp_ms: int
    """When the request happens, milliseconds since the epoch. Only behaviours before it count."""
    candidates: Mapping[str, Sequence[Value]]
    """Features of the candidates by name: lists of one length, one element per candidate. Feature
    "item_id" is needed, and so is the category of the gate, whose elements may be None."""
    features: Mapping[str, Value | Sequence[Value]] = field(default_factory=dict)
    """Features of the request (query, context, scene) by name; a list for a bag of ids."""
    history: Behaviours | None = None
    """The user's behaviours; None: those of the predictor's history store, if it has one."""
    request_id: int | str = 0
    """Names the request for models whose denoising starts from noise; no other model reads it."""
