"""The Open Inference Protocol (version 2, REST) in terms of requests to rank.

One inference is one request with its candidates. The inputs have the names of `Request`'s fields:
"user", "timestamp_ms", "request_id", "features.<name>", "candidates.<name>" and "history.<name>";
all may be left out but "timestamp_ms" and what the artifact requires of candidates. The only output
is "probability". In `data`, null is a missing value. An attribute of behaviours that has several
ids is one list, `max_ids` values for each behaviour, null behind the last one.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

# C candidates of a request, L behaviours

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.serving.encode import LONGEST_BAG, USER_FEATURE
from cdp_torchrec.serving.predictor import PredictorMetadata
from cdp_torchrec.serving.request import Behaviours, Request, RequestError
from cdp_torchrec.serving.server.body import Inference
from cdp_torchrec.serving.server.tensors import InputSpec, tensor_values

OUTPUT = "probability"
PLATFORM = "pytorch_aotinductor"
JSON_LENGTH = "Inference-Header-Content-Length"
"""HTTP header of a body with binary tensors: how long the JSON in front of them is."""
_ID = ("BYTES", "INT64")
_INTEGER = ("INT64",)
_NUMBER = ("FP32", "FP64")
_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}


def input_specs(metadata: PredictorMetadata) -> dict[str, InputSpec]:
    """Inputs of an artifact by name."""
    specs = {
        "user": InputSpec(_ID, 1, at_most=1, is_required=False),
        "timestamp_ms": InputSpec(_INTEGER, 1, at_most=1, is_required=True),
        "request_id": InputSpec(_ID, 1, at_most=1, is_required=False),
    }
    for feature in metadata.features.values():
        if feature.name != USER_FEATURE:
            group = "features" if feature.level == "request" else "candidates"
            specs[f"{group}.{feature.name}"] = _spec(feature, metadata)
    for column in metadata.history_columns:
        datatypes = _INTEGER if column == "timestamp_ms" else _ID
        specs[f"history.{column}"] = InputSpec(
            datatypes, -1, at_most=metadata.max_history, is_required=False
        )
    for attribute in metadata.history_attributes:
        specs[f"history.{attribute.name}"] = InputSpec(
            _NUMBER if attribute.kind == "number" else _ID,
            -1,
            at_most=metadata.max_history * attribute.max_ids,
            is_required=False,
            group=attribute.max_ids if attribute.kind == "ids" else None,
        )
    return specs


def _spec(feature: Feature, metadata: PredictorMetadata) -> InputSpec:
    datatypes = _NUMBER if feature.kind == "number" else _ID
    if feature.level == "candidate":
        return InputSpec(
            datatypes,
            -1,
            at_most=metadata.max_candidates,
            is_required=feature.name in metadata.required_candidate_features,
        )
    if feature.kind == "ids":
        return InputSpec(datatypes, -1, at_most=LONGEST_BAG, is_required=False)
    return InputSpec(datatypes, 1, at_most=1, is_required=False)


def model_metadata(name: str, version: str, specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """$metadata_model_response."""
    return {
        "name": name,
        "versions": [version],
        "platform": PLATFORM,
        "inputs": [
            {"name": name, "datatype": spec.datatypes[0], "shape": [spec.size]}
            for name, spec in specs.items()
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}],
    }


def model_config(name: str, specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """What Triton's extension "model_configuration" answers, as far as it means something here."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "cdp_torchrec",
        "version_policy": {"latest": {"num_versions": 1}},
        # Of Triton's own batching: here a request is one list of candidates.
        "max_batch_size": 0,
        "input": [
            {
                "name": name,
                "data_type": _CONFIG_TYPES[spec.datatypes[0]],
                "dims": [spec.size],
                "optional": not spec.is_required,
            }
            for name, spec in specs.items()
        ],
        "output": [{"name": OUTPUT, "data_type": _CONFIG_TYPES["FP32"], "dims": [-1]}],
    }


def to_request(asked: Inference, specs: Mapping[str, InputSpec]) -> Request:
    """The request that an inference asks to score; `Predictor.encode` looks at its values.

    Raises:
        RequestError: an input is unknown, given twice, or not of its datatype and shape, one that
            is needed is missing, or the output is unknown.
    """
    for output in asked.outputs:
        if output != OUTPUT:
            raise RequestError("outputs", f"the model gives {OUTPUT!r}, found {output!r}")
    values: dict[str, Any] = {}
    for tensor in asked.tensors:
        if tensor.name in values:
            raise RequestError(tensor.name, "the input is given twice")
        spec = specs.get(tensor.name)
        if spec is None:
            raise RequestError(tensor.name, f"no such input; allowed: {', '.join(specs)}")
        found = tensor_values(tensor, spec)
        values[tensor.name] = found[0] if spec.size == 1 else _grouped(tensor.name, found, spec)
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


def _group(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _history(columns: dict[str, Any]) -> Behaviours | None:
    """None, hence the stored history, only if no column is given."""
    if not columns:
        return None
    for name in ("item", "timestamp_ms"):
        if name not in columns:
            raise RequestError(f"history.{name}", "is required beside the rest of the history")
    parts = ("item", "timestamp_ms", "category", "action")
    attributes = {name: values for name, values in columns.items() if name not in parts}
    return Behaviours(
        **{name: values for name, values in columns.items() if name in parts},
        attributes=attributes,
    )


def _grouped(name: str, values: list[Any], spec: InputSpec) -> list[Any]:
    """A list for each behaviour, where each may have several ids."""
    if spec.group is None:
        return values
    if len(values) % spec.group:
        raise RequestError(
            name, f"{len(values)} values, but each behaviour has {spec.group}: null for none"
        )
    starts = range(0, len(values), spec.group)
    return [values[start : start + spec.group] for start in starts]


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
        columns |= request.history.attributes
        values |= {f"history.{n}": column for n, column in columns.items() if column is not None}
    specs = input_specs(metadata)
    return {"inputs": [_tensor(name, value, specs[name]) for name, value in values.items()]}


def _tensor(name: str, value: Any, spec: InputSpec) -> dict[str, Any]:
    data = [value] if spec.size == 1 else list(value)
    if spec.group is not None:
        lists = [[] if ids is None else list(ids) for ids in data]
        data = [raw for ids in lists for raw in [*ids, *[None] * (spec.group - len(ids))]]
    datatype = spec.datatypes[0]
    if spec.datatypes == _ID and any(type(element) is int for element in data):
        datatype = "INT64"
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


@dataclass(frozen=True)
class Answer:
    """Body and headers of a response."""

    body: bytes
    headers: dict[str, str]


def infer_answer(name: str, version: str, asked: Inference, probability: np.ndarray) -> Answer:
    """$inference_response.

    Args:
        name: of the model.
        version: of the model.
        asked: what is answered, in its form: a list for [N], binary where binary was asked for.
        probability: of each candidate, float32 [C].
    """
    is_row = any(t.name == "candidates.item_id" and len(t.shape) == 2 for t in asked.tensors)
    output: dict[str, Any] = {
        "name": OUTPUT,
        "datatype": "FP32",
        "shape": [1, len(probability)] if is_row else [len(probability)],
    }
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": [output]}
    if asked.id is not None:
        response["id"] = asked.id
    if not asked.has_binary_output:
        output["data"] = probability.tolist()
        return Answer(msgspec.json.encode(response), {"Content-Type": "application/json"})
    raw = probability.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    text = msgspec.json.encode(response)
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return Answer(text + raw, headers)
