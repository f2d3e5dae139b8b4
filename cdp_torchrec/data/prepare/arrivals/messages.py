"""Messages of a topic as rows of a log: JSON objects with the columns of the staging files.

    {"request_id": "r1", "user_id": "ann", "timestamp": 1748736000000, "label": [0, 1],
     "item_id": ["a", "b"], ...the features of the dataset...}
    {"user_id": "ann", "item": "a", "category": "shoes", "action": "view", "timestamp": ...}

Every column has to be there, with null where the staging files may hold one; other keys are
ignored. Ids become text, as they are in a dataset.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa
from msgspec import Meta

from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, DatasetSpec
from cdp_torchrec.data.schema import LARGEST_NUMBER, LATEST_TIMESTAMP_MS

Kind = Literal["requests", "behaviours"]

_ID = str | int
_NUMBER = Annotated[float, Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
_MOMENT = Annotated[int, Meta(ge=0, le=LATEST_TIMESTAMP_MS)]
_PROBABILITY = Annotated[float, Meta(ge=0, le=1)]


class MessageError(ValueError):
    """A message is no row of the log."""


@dataclass(frozen=True)
class _Column:
    """How values of a column are sent, and how they are staged."""

    sent: Any
    """Their type in a message."""
    convert: Callable[[Any], Any] | None
    """Makes of it what is staged; None: nothing has to be done."""
    staged: pa.DataType


@dataclass(frozen=True)
class RowFormat:
    """How the messages of one kind are read, and how their rows are written."""

    decode: Callable[[bytes], Any]
    """A message as a row, which has its columns as attributes; `timestamp` among them.

    Raises:
        MessageError: the message is none.
    """
    _columns: Mapping[str, _Column]

    def table(self, rows: Sequence[Any]) -> pa.Table:
        """Rows as they are staged."""
        arrays = {}
        for name, column in self._columns.items():
            values: Iterator[Any] = (getattr(row, name) for row in rows)
            values = values if column.convert is None else map(column.convert, values)
            arrays[name] = pa.array(values, column.staged, size=len(rows))
        return pa.table(arrays)


def row_formats(spec: DatasetSpec, *, has_probability: bool) -> dict[Kind, RowFormat]:
    """Of the messages that a dataset takes.

    Args:
        spec: of the dataset.
        has_probability: whether its requests have a `click_probability`.
    """
    return {"requests": _requests(spec, has_probability), "behaviours": _behaviours(spec)}


def _requests(spec: DatasetSpec, has_probability: bool) -> RowFormat:
    labels = Annotated[list[Literal[0, 1]], Meta(min_length=1)]
    columns = {
        "request_id": _Column(_ID, str, pa.string()),
        "user_id": _Column(_ID, str, pa.string()),
        "timestamp": _Column(_MOMENT, None, pa.int64()),
        "label": _Column(labels, None, pa.list_(pa.int8())),
        "item_id": _Column(list[_ID], _texts, pa.list_(pa.string())),
    }
    for feature in (*spec.request_features(), *spec.candidate_features()):
        if feature.level == "request":
            columns[feature.name] = _value(feature.kind)
        elif feature.name != "item_id":
            columns[feature.name] = _list(feature.kind)
    if has_probability:
        columns[CLICK_PROBABILITY] = _Column(list[_PROBABILITY], None, pa.list_(pa.float64()))
    lists = [f.name for f in spec.candidate_features()]
    lists += [CLICK_PROBABILITY] if has_probability else []

    def check(row: Any) -> None:
        count = len(row.label)
        for name in lists:
            if len(getattr(row, name)) != count:
                raise MessageError(
                    f"candidate lists of unequal length: {len(getattr(row, name))} of '{name}', "
                    f"{count} of 'label'"
                )

    return _format("Request", columns, check)


def _behaviours(spec: DatasetSpec) -> RowFormat:
    columns = {"timestamp": _Column(_MOMENT, None, pa.int64())}
    for name, _ in spec.behaviour_columns():
        is_needed = name in ("user_id", "item")
        columns[name] = _Column(_ID, str, pa.string()) if is_needed else _value("id")
    for attribute in spec.attributes:
        columns[attribute.name] = _value(attribute.kind, max_ids=attribute.max_ids)
    return _format("Behaviour", columns, None)


def _value(kind: Literal["id", "ids", "number"], max_ids: int | None = None) -> _Column:
    """Of a request or a behaviour; it may be missing."""
    if kind == "number":
        return _Column(_NUMBER | None, None, pa.float64())
    if kind == "id":
        return _Column(_ID | None, _text, pa.string())
    ids = Annotated[list[_ID | None], Meta(max_length=max_ids)]
    return _Column(ids | None, _texts, pa.list_(pa.string()))


def _list(kind: Literal["id", "ids", "number"]) -> _Column:
    """Of candidates, each of whose values may be missing."""
    if kind == "number":
        return _Column(list[_NUMBER | None], None, pa.list_(pa.float64()))
    return _Column(list[_ID | None], _texts, pa.list_(pa.string()))


def _format(
    name: str,
    columns: Mapping[str, _Column],
    check: Callable[[Any], None] | None,
) -> RowFormat:
    row_type = msgspec.defstruct(name, [(n, c.sent) for n, c in columns.items()], gc=False)
    decoder = msgspec.json.Decoder(row_type)

    def decode(message: bytes) -> Any:
        try:
            row = decoder.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(str(error)) from None
        if check is not None:
            check(row)
        return row

    return RowFormat(decode, columns)


def _text(value: str | int | None) -> str | None:
    return value if value is None or type(value) is str else str(value)


def _texts(values: list[str | int | None] | None) -> list[str | None] | None:
    return None if values is None else [_text(value) for value in values]
