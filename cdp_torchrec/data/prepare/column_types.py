"""What a column of a user's table may be declared to hold, and how its parquet types are read."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class ColumnType:
    """What a column is declared to hold."""

    expected: str
    """How errors name it."""
    widened: Callable[[pa.DataType], pa.DataType | None]
    """The type as which a parquet type is read; None: not allowed."""
    default: pa.DataType
    """Of a column without any value."""


def list_of(element: ColumnType) -> ColumnType:
    """A list, nulls allowed, of such elements."""

    def widened(kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_null(kind):
            return kind
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return None
        inner = element.widened(kind.value_type)
        return None if inner is None else pa.list_(inner)

    return ColumnType(f"list of {element.expected}", widened, pa.list_(element.default))


def _integer(kind: pa.DataType) -> pa.DataType | None:
    return pa.int64() if pa.types.is_integer(kind) else None


def _id(kind: pa.DataType) -> pa.DataType | None:
    return kind if pa.types.is_uint64(kind) else _integer(kind) or _text(kind)


def _number(kind: pa.DataType) -> pa.DataType | None:
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return pa.float64() if is_number else None


def _text(kind: pa.DataType) -> pa.DataType | None:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.string() if is_text or pa.types.is_string_view(kind) else None


def _time(kind: pa.DataType) -> pa.DataType | None:
    # A moment is the same in every time zone.
    return pa.timestamp(kind.unit, kind.tz and "UTC") if pa.types.is_timestamp(kind) else None


def _moment(kind: pa.DataType) -> pa.DataType | None:
    exact = pa.types.is_date(kind) or pa.types.is_decimal(kind)
    return _time(kind) or (kind if exact else None)


def _flag(kind: pa.DataType) -> pa.DataType | None:
    return kind if pa.types.is_boolean(kind) else None


def _whole(kind: pa.DataType) -> pa.DataType | None:
    return kind if pa.types.is_decimal(kind) and kind.scale == 0 else None


def _anything(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(ANY.widened(kind.value_type) or kind.value_type)
    return _id(kind) or _number(kind) or _time(kind) or kind


def _declared(
    expected: str, widened: Callable[[pa.DataType], pa.DataType | None], default: pa.DataType
) -> ColumnType:
    def of_values(kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_dictionary(kind):
            return of_values(kind.value_type)
        return kind if pa.types.is_null(kind) else widened(kind)

    return ColumnType(expected, of_values, default)


INTEGER = _declared("integer", _integer, pa.int64())
ID = _declared("string or integer", _id, pa.string())
NUMBER = _declared("number", _number, pa.float64())
TEXT = _declared("string", _text, pa.string())
TIME = _declared("timestamp", _time, pa.timestamp("us"))
FLAG = _declared("boolean", _flag, pa.bool_())
ANY = _declared("anything", _anything, pa.null())


def _or_list(expected: str, one: Callable[[pa.DataType], pa.DataType | None]) -> ColumnType:
    """Single values or lists of them."""
    element = _declared(expected, one, pa.string())

    def widened(kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            inner = element.widened(kind.value_type)
            return None if inner is None else pa.list_(inner)
        return one(kind)

    return _declared(f"{expected}, or a list of them", widened, pa.string())


CODE_OR_LIST = _or_list(
    "string, integer or boolean", lambda kind: _id(kind) or _flag(kind) or _whole(kind)
)
VALUE_OR_LIST = _or_list(
    "string, number, boolean or time",
    lambda kind: _id(kind) or _flag(kind) or _number(kind) or _moment(kind),
)
