"""Tensors of the Open Inference Protocol say exactly what a request says."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request, RequestError
from cdp_torchrec.serving.server.body import read_inference
from cdp_torchrec.serving.server.protocol import (
    input_specs,
    model_metadata,
    to_infer_request,
    to_request,
)


def from_body(body: dict[str, Any], predictor: Predictor) -> Request:
    asked = read_inference(json.dumps(body).encode(), json_length=None, most_values=10_000)
    return to_request(asked, input_specs(predictor.metadata))


def test_a_request_survives_the_way_to_tensors_and_back(
    predictor: Predictor, requests: list[Request], behaviours: list[Behaviours]
) -> None:
    for request, own in zip(requests, behaviours, strict=True):
        for sent in (request, replace(request, history=own), replace(request, user=None)):
            received = from_body(to_infer_request(sent, predictor.metadata), predictor)
            features = {name: value for name, value in sent.features.items()}
            assert replace(received, candidates={}) == replace(
                sent, features=features, candidates={}
            )
            assert dict(received.candidates) == {n: list(v) for n, v in sent.candidates.items()}


def test_the_metadata_describes_every_input_of_the_schema(predictor: Predictor) -> None:
    described = model_metadata("m", "v", input_specs(predictor.metadata))
    assert described["name"] == "m"
    assert described["versions"] == ["v"]
    inputs = {
        tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in described["inputs"]
    }
    assert inputs["user"] == ("BYTES", [1])
    assert inputs["timestamp_ms"] == ("INT64", [1])
    assert inputs["features.hour"] == ("BYTES", [1])
    assert inputs["features.query_tokens"] == ("BYTES", [-1])
    assert inputs["candidates.item_id"] == ("BYTES", [-1])
    assert inputs["candidates.log_price"] == ("FP32", [-1])
    assert inputs["history.timestamp_ms"] == ("INT64", [-1])
    assert len(inputs) == 3 + len(predictor.metadata.features) - 1 + 4
    assert described["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]


def change(name: str, **fields: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Change an input, or add it."""

    def apply(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [tensor for tensor in inputs if tensor["name"] == name]
        tensor = (found or [{"name": name, "datatype": "BYTES", "shape": [1], "data": ["x"]}])[0]
        return [tensor | fields, *(other for other in inputs if other["name"] != name)]

    return apply


def without(name: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda inputs: [tensor for tensor in inputs if tensor["name"] != name]


BAD = {
    "unknown input": (change("features.colour"), "features.colour"),
    "unknown group": (change("colour"), "colour"),
    "a request's feature as one of candidates": (change("candidates.hour"), "candidates.hour"),
    "user as a feature": (change("features.user_id"), "features.user_id"),
    "given twice": (lambda inputs: [*inputs, inputs[0]], "timestamp_ms"),
    "no moment": (without("timestamp_ms"), "timestamp_ms"),
    "shape of another length": (change("candidates.item_id", shape=[3]), "candidates.item_id"),
    "two rows": (change("candidates.item_id", shape=[2, 4]), "candidates.item_id"),
    "three dimensions": (change("candidates.item_id", shape=[1, 1, 8]), "candidates.item_id"),
    "endless shape": (change("candidates.item_id", shape=[1] * 5_000), "candidates.item_id"),
    "negative shape": (change("candidates.item_id", shape=[-1]), "candidates.item_id"),
    "shape of a text": (change("candidates.item_id", shape=["8"]), "candidates.item_id"),
    "huge shape": (change("candidates.item_id", shape=[10**30]), "candidates.item_id"),
    "more than the model takes": (
        change("candidates.item_id", shape=[51], data=["a"] * 51),
        "candidates.item_id",
    ),
    "no data": (change("user", data=None), "user"),
    "an object for a value": (change("user", data=[{}]), "user"),
    "a number beyond all": (
        change("candidates.log_price", data=[float("1e308") * 10] * 8),
        "body",
    ),
    "no shape": (change("user", shape=[]), "user"),
    "two users": (change("user", shape=[2], data=["a", "b"]), "user"),
    "number for a text": (change("user", data=[1]), "user"),
    "text for an integer": (change("timestamp_ms", data=["1"]), "timestamp_ms"),
    "float for an integer": (change("timestamp_ms", data=[1.0]), "timestamp_ms"),
    "boolean for an integer": (change("user", datatype="INT64", data=[True]), "user"),
    "text for a number": (change("candidates.log_price", data=["1"] * 8), "candidates.log_price"),
    "nested data": (change("user", data=[["a"]]), "user"),
    "wrong datatype": (change("user", datatype="FP32", data=[1.0]), "user"),
    "ids for a number": (change("candidates.log_price", datatype="INT64"), "candidates.log_price"),
    "unknown datatype": (change("user", datatype="STRING"), "user"),
    "history without moments": (change("history.item"), "history.timestamp_ms"),
    "history without items": (change("history.action"), "history.item"),
}


@pytest.mark.parametrize(("spoil", "culprit"), BAD.values(), ids=BAD.keys())
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    predictor: Predictor,
    requests: list[Request],
    spoil: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    culprit: str,
) -> None:
    inputs = to_infer_request(requests[0], predictor.metadata)["inputs"]
    assert inputs[0]["name"] == "timestamp_ms"
    with pytest.raises(RequestError) as caught:
        from_body({"inputs": spoil(inputs)}, predictor)
    assert caught.value.field == culprit


def test_an_output_that_the_model_does_not_have_is_refused(
    predictor: Predictor, requests: list[Request]
) -> None:
    body = to_infer_request(requests[0], predictor.metadata)
    from_body(body | {"outputs": [{"name": "probability"}]}, predictor)
    with pytest.raises(RequestError, match="outputs: the model gives 'probability', found 'rank'"):
        from_body(body | {"outputs": [{"name": "rank"}]}, predictor)
