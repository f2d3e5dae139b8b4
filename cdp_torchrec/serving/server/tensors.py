"""Values of a tensor, from the JSON or from binary data."""

# N values

import struct
from typing import Any, Literal, NamedTuple

import numpy as np

from cdp_torchrec.serving.request import RequestError
from cdp_torchrec.serving.server.body import Tensor

# The exact types: true is no INT64.
_TYPES: dict[str, frozenset[type]] = {
    "BYTES": frozenset({str, type(None)}),
    "INT64": frozenset({int, type(None)}),
    "FP32": frozenset({float, int, type(None)}),
    "FP64": frozenset({float, int, type(None)}),
}
_BINARY = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
_LENGTH = struct.Struct("<I")


class InputSpec(NamedTuple):
    """What an input may be like."""

    datatypes: tuple[str, ...]
    """Those allowed; the metadata announces the first."""
    size: Literal[1, -1]
    """One value, or a list."""
    at_most: int
    """Longest list."""
    is_required: bool
    group: int | None = None
    """Values of each element, where an element is a list of ids; None: an element is a value."""


def tensor_values(tensor: Tensor, spec: InputSpec) -> list[Any]:
    """The values, N of them, as Python has them; None: missing.

    Shapes [N] and [1, N] are the same.

    Raises:
        RequestError: datatype, shape and values do not fit each other or what the input may be.
    """
    name = tensor.name
    if tensor.datatype not in spec.datatypes:
        allowed = " or ".join(spec.datatypes)
        raise RequestError(name, f"expected datatype {allowed}, found {tensor.datatype}")
    count = _count(tensor, spec)
    values = _from_json(tensor) if tensor.raw is None else _from_binary(tensor, count)
    if len(values) != count:
        raise RequestError(name, f"shape {tensor.shape}, but there are {len(values)} values")
    return values


def _count(tensor: Tensor, spec: InputSpec) -> int:
    """N."""
    name, shape = tensor.name, tensor.shape
    if not 1 <= len(shape) <= 2 or shape[0] < 0 or shape[-1] < 0:
        raise RequestError(name, "expected a shape of [N] or [1, N]")
    if len(shape) == 2 and shape[0] != 1:
        raise RequestError(name, f"expected shape [N] or [1, N], found {shape}: send one request")
    count = shape[-1]
    if spec.size == 1 and count != 1:
        raise RequestError(name, f"expected shape [1], found {shape}")
    if count > spec.at_most:
        raise RequestError(name, f"{count} values, at most {spec.at_most} are allowed")
    return count


def _from_json(tensor: Tensor) -> list[Any]:
    values = tensor.data
    assert values is not None
    if len(tensor.shape) == 2 and len(values) == 1 and isinstance(values[0], list):
        [values] = values
    allowed = _TYPES[tensor.datatype]
    for wrong in set(map(type, values)) - allowed:
        raise RequestError(
            tensor.name, f"expected {tensor.datatype} in `data`, found {wrong.__name__}"
        )
    return values


def _from_binary(tensor: Tensor, count: int) -> list[Any]:
    raw = tensor.raw
    assert raw is not None
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, raw, count)
    dtype = np.dtype(_BINARY[tensor.datatype])
    if len(raw) != count * dtype.itemsize:
        raise RequestError(
            tensor.name,
            f"{count} values of {tensor.datatype} are {count * dtype.itemsize} bytes, found "
            f"binary_data_size = {len(raw)}",
        )
    return np.frombuffer(raw, dtype).tolist()


def _texts(name: str, raw: memoryview, count: int) -> list[str]:
    """Each is its length, 4 bytes, then so many bytes of UTF-8."""
    found: list[str] = []
    start = 0
    try:
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(raw, start)
            stop = start + _LENGTH.size + length
            if stop > len(raw):
                break
            found.append(str(raw[start + _LENGTH.size : stop], "utf-8"))
            start = stop
    except struct.error:
        pass  # cut off within a length
    except UnicodeDecodeError as error:
        raise RequestError(name, f"value {len(found)} is no UTF-8") from error
    if len(found) != count or start != len(raw):
        raise RequestError(
            name, f"binary data holds {len(found)} whole values in {start} of {len(raw)} bytes"
        )
    return found
