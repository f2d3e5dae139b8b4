"""The Open Inference Protocol (version 2, REST) in terms of requests to rank.

One inference is one request with its candidates. The inputs have the names of `Request`'s fields:
"user", "timestamp_ms", "request_id", "features.<name>", "candidates.<name>" and "history.<name>";
all may be left out but "timestamp_ms" and what the artifact requires of candidates. The only output
is "probability". In `data`, null is a missing value.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

# C candidates of a request, L behaviours

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.serving.encode import USER_FEATURE
from cdp_torchrec.serving.predictor import PredictorMetadata
from cdp_torchrec.serving.request import Behaviours, Request, RequestError

OUTPUT = "probability"
_ID = ("BYTES", "INT64")
_INTEGER = ("INT64",)
_NUMBER = ("FP32", "FP64")
# The exact types: true is no INT64.
_TYPES: dict[str, tuple[type, ...]] = {
    "BYTES": (str, type(None)),
    "INT64": (int, type(None)),
    "FP32": (float, int, type(None)),
    "FP64": (float, int, type(None)),
}


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class InferInput(_Object):
    """$request_input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any]


class RequestedOutput(_Object):
    """$request_output."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(_Object):
    """$inference_request. Parameters are hints of other servers, which mean nothing here."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InferInput]
    outputs: list[RequestedOutput] = []


@dataclass(frozen=True)
class InputSpec:
    """What an input may be like."""

    datatypes: tuple[str, ...]
    """Those allowed; the metadata announces the first."""
    size: Literal[1, -1]
    """One value, or a list of any length."""


def input_specs(metadata: PredictorMetadata) -> dict[str, InputSpec]:
    """Inputs of an artifact by name."""
    specs = {
        "user": InputSpec(_ID, 1),
        "timestamp_ms": InputSpec(_INTEGER, 1),
        "request_id": InputSpec(_ID, 1),
    }
    for feature in metadata.features.values():
        if feature.name != USER_FEATURE:
            group = "features" if feature.level == "request" else "candidates"
            specs[f"{group}.{feature.name}"] = _spec(feature)
    for column in metadata.history_columns:
        datatypes = _INTEGER if column == "timestamp_ms" else _ID
        specs[f"history.{column}"] = InputSpec(datatypes, -1)
    return specs


def _spec(feature: Feature) -> InputSpec:
    is_one = feature.level == "request" and feature.kind != "ids"
    return InputSpec(_NUMBER if feature.kind == "number" else _ID, 1 if is_one else -1)


def model_metadata(name: str, version: str, specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """$metadata_model_response."""
    return {
        "name": name,
        "versions": [version],
        "platform": "pytorch_aotinductor",
        "inputs": [
            {"name": name, "datatype": spec.datatypes[0], "shape": [spec.size]}
            for name, spec in specs.items()
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}],
    }


def to_request(asked: InferRequest, specs: Mapping[str, InputSpec]) -> Request:
    """The request that an inference asks to score; `Predictor.check` looks at its values.

    Raises:
        RequestError: an input is unknown, given twice, or not of its datatype and shape, one that
            is needed is missing, or the output is unknown.
    """
    for output in asked.outputs:
        if output.name != OUTPUT:
            raise RequestError("outputs", f"the model gives {OUTPUT!r}, found {output.name!r}")
    values: dict[str, Any] = {}
    for tensor in asked.inputs:
        if tensor.name in values:
            raise RequestError(tensor.name, "the input is given twice")
        if tensor.name not in specs:
            raise RequestError(tensor.name, f"no such input; allowed: {', '.join(specs)}")
        spec = specs[tensor.name]
        _check(tensor, spec)
        values[tensor.name] = tensor.data[0] if spec.size == 1 else tensor.data
    if "timestamp_ms" not in values:
        raise RequestError("timestamp_ms", "is required")
    return Request(
        user=values.get("user"),
        timestamp_ms=values["timestamp_ms"],
        candidates=_group(values, "candidates."),
        features=_group(values, "features."),
        history=_history(_group(values, "history.")),
        request_id=values.get("request_id", 0),
    )


def _check(tensor: InferInput, spec: InputSpec) -> None:
    if tensor.datatype not in spec.datatypes:
        allowed = " or ".join(spec.datatypes)
        raise RequestError(tensor.name, f"expected datatype {allowed}, found {tensor.datatype}")
    if tensor.shape != [len(tensor.data)]:
        raise RequestError(
            tensor.name, f"shape {tensor.shape}, but `data` is a list of {len(tensor.data)} values"
        )
    if spec.size == 1 and len(tensor.data) != 1:
        raise RequestError(tensor.name, f"expected shape [1], found {tensor.shape}")
    allowed_types = _TYPES[tensor.datatype]
    for value in tensor.data:
        if type(value) not in allowed_types:
            raise RequestError(
                tensor.name, f"expected {tensor.datatype} in `data`, found {type(value).__name__}"
            )


def _group(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _history(columns: dict[str, Any]) -> Behaviours | None:
    """None, hence the stored history, only if no column is given."""
    if not columns:
        return None
    for name in ("item", "timestamp_ms"):
        if name not in columns:
            raise RequestError(f"history.{name}", "is required beside the rest of the history")
    return Behaviours(**columns)


def to_infer_request(request: Request, metadata: PredictorMetadata) -> dict[str, Any]:
    """The body that asks a server to score a request: the other way round, for clients."""
    values: dict[str, Any] = {"timestamp_ms": request.timestamp_ms}
    if request.user is not None:
        values["user"] = request.user
    if request.request_id != 0:
        values["request_id"] = request.request_id
    values |= {f"features.{name}": value for name, value in request.features.items()}
    values |= {f"candidates.{name}": value for name, value in request.candidates.items()}
    if request.history is not None:
        columns = {name: getattr(request.history, name) for name in metadata.history_columns}
        values |= {f"history.{n}": column for n, column in columns.items() if column is not None}
    specs = input_specs(metadata)
    return {"inputs": [_tensor(name, value, specs[name]) for name, value in values.items()]}


def _tensor(name: str, value: Any, spec: InputSpec) -> dict[str, Any]:
    data = [value] if spec.size == 1 else list(value)
    datatype = spec.datatypes[0]
    if spec.datatypes == _ID and any(type(element) is int for element in data):
        datatype = "INT64"
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def infer_response(
    name: str, version: str, request_id: str | None, probability: np.ndarray
) -> dict[str, Any]:
    """$inference_response with the probability of each candidate, [C]."""
    output = {
        "name": OUTPUT,
        "datatype": "FP32",
        "shape": [len(probability)],
        "data": probability.tolist(),
    }
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": [output]}
    return response if request_id is None else response | {"id": request_id}
