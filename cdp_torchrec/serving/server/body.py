"""The body of an inference as bytes: JSON, alone or with binary tensors behind it.

Reading stops at the first mistake and builds nothing for what comes after it, so that a refusal is
cheap whatever the body holds.

Sources: https://github.com/kserve/open-inference-protocol, specification/protocol/
inference_rest.md; for tensors behind the JSON, https://github.com/triton-inference-server/server,
docs/protocol/extension_binary_data.md
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cdp_torchrec.serving.request import RequestError

_LONGEST_ID = 1024
_LONGEST_OUTPUTS = 4096
# zlib's formats: gzip has a header of its own, deflate means the one of zlib.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_NOT_JSON = re.compile(rb"NaN|Infinity")


class BodyTooLargeError(ValueError):
    """There is more in a body than the server reads."""


class _InputParameters(msgspec.Struct, frozen=True, gc=False):
    binary_data_size: int | None = None


class _OutputParameters(msgspec.Struct, frozen=True, gc=False):
    binary_data: bool | None = None


class _RequestParameters(msgspec.Struct, frozen=True, gc=False):
    binary_data_output: bool = False


class _Input(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """$request_input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


class _Output(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """$request_output."""

    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Inference(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """$inference_request. Other parameters are hints for other servers."""

    inputs: list[_Input]
    id: str | None = None
    parameters: _RequestParameters = _RequestParameters()
    outputs: msgspec.Raw = msgspec.Raw(b"[]")
    """Read when it is known that they are few: a list of Output."""


class _Name(msgspec.Struct, gc=False):
    name: str = ""


class _Names(msgspec.Struct, gc=False):
    """All that an error needs of a body whose values are wrong."""

    inputs: list[_Name]


_INFERENCE = msgspec.json.Decoder(_Inference)
_OUTPUTS = msgspec.json.Decoder(list[_Output])
_NAMES = msgspec.json.Decoder(_Names)


@dataclass(frozen=True)
class Tensor:
    """An input as it was sent: either `data` of the JSON, or `raw` of what follows it."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any] | None
    raw: memoryview | None


@dataclass(frozen=True)
class Inference:
    """What a client asks."""

    id: str | None
    tensors: Sequence[Tensor]
    outputs: Sequence[str]
    has_binary_output: bool
    """Whether the answer's tensor shall follow its JSON."""


def decompress(body: bytes, compression: str, *, at_most: int) -> bytes:
    """The body as it was before its compression, "gzip" or "deflate".

    Raises:
        RequestError: it is damaged.
        BodyTooLargeError: it would have more than `at_most` bytes.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[compression])
    try:
        found = stream.decompress(body, at_most + 1)
    except zlib.error as error:
        raise RequestError("body", f"is no {compression}") from error
    if len(found) > at_most:
        raise BodyTooLargeError(f"the body has more than {at_most} bytes")
    if not stream.eof:
        raise RequestError("body", f"is no {compression}: it ends too early")
    if stream.unused_data:
        # Also another member of gzip: of many small ones the rest would be copied for each.
        behind = len(stream.unused_data)
        raise RequestError("body", f"is no single {compression}: {behind} bytes follow its end")
    return found


def read_inference(body: bytes, *, json_length: int | None, most_values: int) -> Inference:
    """The inference of a body.

    Args:
        body: JSON, then binary tensors.
        json_length: bytes of the JSON (Inference-Header-Content-Length); None: all.
        most_values: bound on the commas of the JSON, hence on what it can consist of.

    Raises:
        RequestError: the JSON or the sizes of the tensors are wrong.
        BodyTooLargeError: too many values.
    """
    if json_length is not None and not 0 <= json_length <= len(body):
        raise RequestError(
            "Inference-Header-Content-Length", f"found {json_length}, the body has {len(body)}"
        )
    text = body if json_length is None else body[:json_length]
    if text.count(b",") >= most_values:
        raise BodyTooLargeError(f"the body has more than {most_values} values")
    asked = _decode(text)
    if asked.id is not None and len(asked.id) > _LONGEST_ID:
        raise RequestError("id", f"has more than {_LONGEST_ID} characters")
    outputs = _outputs(asked.outputs)
    binary = [output.parameters.binary_data for output in outputs]
    return Inference(
        id=asked.id,
        tensors=_tensors(asked, memoryview(body)[len(text) :]),
        outputs=[output.name for output in outputs],
        has_binary_output=next(
            (b for b in binary if b is not None), asked.parameters.binary_data_output
        ),
    )


def _decode(text: bytes) -> _Inference:
    try:
        return _INFERENCE.decode(text)
    except msgspec.ValidationError as error:
        raise _wrong_value(text, str(error)) from error
    # Which of them text that is no UTF-8 gets depends on the version of msgspec.
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("body", _malformed(text, str(error))) from error
    except RecursionError as error:
        raise RequestError("body", "is nested too deeply") from error


def _wrong_value(text: bytes, problem: str) -> RequestError:
    """What msgspec says, "... - at `$.inputs[3].shape[0]`", by the name of the input."""
    what, _, where = problem.partition(" - at `$.")
    place = re.match(r"inputs\[(\d+)\]", where)
    if place is not None:
        number = int(place[1])
        try:
            name = _NAMES.decode(text).inputs[number].name
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            name = ""
        return RequestError(name or f"inputs[{number}]", what)
    return RequestError(where.rstrip("`") or "body", what)


def _outputs(text: msgspec.Raw) -> list[_Output]:
    if len(text) > _LONGEST_OUTPUTS:
        raise RequestError("outputs", f"{len(text)} bytes, and the model has one output")
    try:
        return _OUTPUTS.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("outputs", str(error)) from error


def _malformed(text: bytes, problem: str) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"is no UTF-8: {error.reason}"
    place = re.search(r"byte (\d+)", problem)
    number = _NOT_JSON.match(text, int(place[1])) if place is not None else None
    return (
        problem if number is None else f"JSON has no {number[0].decode()} (byte {number.start()})"
    )


def _tensors(asked: _Inference, behind: memoryview) -> list[Tensor]:
    found: list[Tensor] = []
    start = 0
    for tensor in asked.inputs:
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise RequestError(tensor.name, "expected either `data` or `binary_data_size`")
        raw = None
        if size is not None:
            if not 0 <= size <= len(behind) - start:
                raise RequestError(
                    tensor.name,
                    f"binary_data_size = {size}, but {len(behind) - start} bytes are left",
                )
            raw = behind[start : start + size]
            start += size
        found.append(Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data, raw))
    if start != len(behind):
        raise RequestError("body", f"{len(behind) - start} bytes follow the last tensor")
    return found
