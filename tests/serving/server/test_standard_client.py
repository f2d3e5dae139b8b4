"""Triton's own client speaks to the server: a client of the protocol that we did not write."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.protocol import to_infer_request

from .conftest import CLOSE, NAME, Server

_DTYPES = {"BYTES": np.object_, "INT64": np.int64, "FP32": np.float32}

# A client that is closed would close itself again when it is collected, in whatever thread.
del triton.InferenceServerClient.__del__


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    address = f"{server.client.base_url.host}:{server.client.base_url.port}"
    with triton.InferenceServerClient(address, network_timeout=60.0) as client:
        yield client


def whole(request: Request) -> Request:
    """A request whose features all have values: a tensor of this client has no null."""
    features = {n: "x" if value is None else value for n, value in request.features.items()}
    return Request(
        user=request.user,
        timestamp_ms=request.timestamp_ms,
        candidates=request.candidates,
        features=features,
        request_id=request.request_id,
    )


def tensors(
    request: Request, predictor: Predictor, *, is_binary: bool, is_row: bool = False
) -> list[triton.InferInput]:
    found = []
    for tensor in to_infer_request(request, predictor.metadata)["inputs"]:
        values = np.array(tensor["data"], dtype=_DTYPES[tensor["datatype"]])
        values = values[np.newaxis] if is_row else values
        given = triton.InferInput(tensor["name"], list(values.shape), tensor["datatype"])
        found.append(given.set_data_from_numpy(values, binary_data=is_binary))
    return found


def asked(is_binary: bool) -> Sequence[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("probability", binary_data=is_binary)]


@pytest.mark.parametrize("is_row", [False, True], ids=["[N]", "[1, N]"])
@pytest.mark.parametrize("binary_output", [False, True], ids=["json answer", "binary answer"])
@pytest.mark.parametrize("binary_input", [False, True], ids=["json", "binary"])
def test_its_scores_are_those_of_the_predictor(
    client: triton.InferenceServerClient,
    predictor: Predictor,
    requests: list[Request],
    binary_input: bool,
    binary_output: bool,
    is_row: bool,
) -> None:
    for request in map(whole, requests[:3]):
        inputs = tensors(request, predictor, is_binary=binary_input, is_row=is_row)
        answer = client.infer(NAME, inputs, outputs=asked(binary_output), request_id="7")
        expected = predictor.score(request)
        expected = expected[np.newaxis] if is_row else expected
        assert answer.get_response()["id"] == "7"
        found = answer.as_numpy("probability")
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [False, True])
def test_it_may_compress_what_it_sends(
    client: triton.InferenceServerClient,
    predictor: Predictor,
    requests: list[Request],
    algorithm: str,
    is_binary: bool,
) -> None:
    request = whole(requests[0])
    answer = client.infer(
        NAME,
        tensors(request, predictor, is_binary=is_binary),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(
        answer.as_numpy("probability"), predictor.score(request), rtol=0, atol=CLOSE
    )


def test_it_finds_health_metadata_configuration_and_versions(
    client: triton.InferenceServerClient, predictor: Predictor, requests: list[Request]
) -> None:
    version = predictor.metadata.version
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(NAME) and client.is_model_ready(NAME, version)
    assert not client.is_model_ready(NAME, "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata(NAME, version)
    configured = client.get_model_config(NAME, version)
    assert configured["name"] == NAME and configured["max_batch_size"] == 0
    assert [i["name"] for i in configured["input"]] == [i["name"] for i in described["inputs"]]
    required = {i["name"] for i in configured["input"] if not i["optional"]}
    assert required == {"timestamp_ms", "candidates.item_id", "candidates.category_id"}
    assert client.get_model_repository_index()[0]["state"] == "READY"
    inputs = tensors(whole(requests[0]), predictor, is_binary=True)
    assert client.infer(NAME, inputs, version).get_response()["model_version"] == version


def spoiled(**fields: Any) -> triton.InferInput:
    values = np.array([["a", "b"]], dtype=np.object_)
    given = triton.InferInput("candidates.item_id", [1, 2], "BYTES").set_data_from_numpy(values)
    for name, value in fields.items():
        setattr(given, name, value)
    return given


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"_raw_data": b"\x01\x00\x00\x00a\x01\x00\x00"}, "holds 1 whole values in 5 of 8 bytes"),
        ({"_raw_data": b"\xff\xff\xff\xffa" + b"b" * 100}, "holds 0 whole values"),
        ({"_raw_data": b"\x01\x00\x00\x00\xff\x00\x00\x00\x00"}, "value 0 is no UTF-8"),
        ({"_raw_data": b"\x00" * 12}, "holds 2 whole values in 8 of 12 bytes"),
        ({"_shape": [1, 3]}, "holds 2 whole values in 10 of 10 bytes"),
        ({"_shape": [2, 1]}, r"expected shape \[N\] or \[1, N\]"),
        ({"_shape": [10**9]}, "at most 50 are allowed"),
        ({"_datatype": "FP32"}, "expected datatype BYTES or INT64"),
        ({"_datatype": "INT64"}, "2 values of INT64 are 16 bytes"),
    ],
)
def test_binary_tensors_that_do_not_fit_are_refused_by_name(
    client: triton.InferenceServerClient, fields: dict[str, Any], text: str
) -> None:
    given = spoiled(**fields)
    if given._raw_data is not None:
        given._parameters["binary_data_size"] = len(given._raw_data)
    with pytest.raises(InferenceServerException, match=rf"candidates.item_id: .*{text}"):
        client.infer(NAME, [given])


def test_what_is_not_a_number_is_refused_in_binary_too(
    client: triton.InferenceServerClient, predictor: Predictor, requests: list[Request]
) -> None:
    inputs = tensors(whole(requests[0]), predictor, is_binary=True)
    [prices] = [i for i in inputs if i.name() == "candidates.log_price"]
    prices.set_data_from_numpy(np.full(prices.shape(), np.nan, dtype=np.float32))
    with pytest.raises(InferenceServerException, match=r"candidates\.log_price: "):
        client.infer(NAME, inputs)
