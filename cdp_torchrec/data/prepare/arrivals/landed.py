"""What an entry of an inbox says of the messages that it was made of."""

from pathlib import Path

from pydantic import ValidationError

from cdp_torchrec.config import Config
from cdp_torchrec.data.prepare.arrivals.inbox import entries
from cdp_torchrec.data.schema import DatasetError

OFFSETS, REFUSED = "offsets.json", "refused.jsonl"


class Place(Config):
    """How far a partition of a topic was read."""

    first: int
    """The first message that has not landed: reading goes on there."""
    read: int
    """The one behind the last message that was read. Those before it have landed, or belong to
    what comes later."""
    refused: list[int] = []
    """Those between the two that were refused, so that they stay so when they are read again."""


class Landed(Config):
    """What `offsets.json` says."""

    until_ms: int
    """Everything before this moment has landed, milliseconds since the epoch."""
    places: dict[str, dict[int, Place]]
    """By topic and partition."""
    requests: int
    behaviours: int
    repeated: int
    """Requests that came once more, under the same id."""
    before: int
    """Messages that were passed over: they are not later than what the dataset had."""
    refused: int
    """Messages that could not be used; they are in `refused.jsonl`."""


def nothing_landed(*, until_ms: int) -> Landed:
    """Before the first entry: what is of before a moment, the dataset has."""
    counts = dict.fromkeys(("requests", "behaviours", "repeated", "before", "refused"), 0)
    return Landed(until_ms=until_ms, places={}, **counts)


def newest_landed(inbox: Path) -> Landed | None:
    """What the newest entry says that was made of messages; None: there is none.

    Raises:
        DatasetError: it is unreadable.
    """
    for entry in reversed(entries(inbox)):
        path = entry / OFFSETS
        if path.exists():
            try:
                return Landed.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                raise DatasetError(f"{path}: is damaged: {error}") from error
    return None
