"""Over HTTP: the scores of the predictor, or an error that says what is wrong."""

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.server.protocol import to_infer_request

from .conftest import NAME, GatedPredictor, Server, probabilities

# Another batch, another order of sums.
CLOSE = 1e-6
INFER = f"/v2/models/{NAME}/infer"


def test_health_and_metadata(server: Server, predictor: Predictor) -> None:
    version = predictor.metadata.version
    get = server.client.get
    assert get("/v2").json()["name"] == "cdp_torchrec"
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for path in (f"/v2/models/{NAME}", f"/v2/models/{NAME}/versions/{version}"):
        assert get(path).json()["versions"] == [version]
        assert get(f"{path}/ready").json() == {"name": NAME, "ready": True}
    index = server.client.post("/v2/repository/index").json()
    assert index == [{"name": NAME, "version": version, "state": "READY", "reason": ""}]


def test_an_inference_is_the_score_of_the_predictor(
    server: Server, predictor: Predictor, requests: list[Request], behaviours: list[Behaviours]
) -> None:
    for request, own in zip(requests[:20], behaviours, strict=False):
        for asked in (request, replace(request, history=own)):
            response = server.infer(asked, id="abc", outputs=[{"name": "probability"}])
            np.testing.assert_array_equal(probabilities(response), predictor.score(asked))
            answer = response.json()
            assert answer["id"] == "abc"
            assert answer["model_name"] == NAME
            assert answer["model_version"] == predictor.metadata.version


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("", bytes),
        ("identity", bytes),
        ("Identity", bytes),
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("Deflate", zlib.compress),
    ],
)
def test_a_content_encoding_is_read_in_any_case_and_none_is_one_too(
    server: Server,
    predictor: Predictor,
    requests: list[Request],
    coding: str,
    encode: Callable[[bytes], bytes],
) -> None:
    body = json.dumps(to_infer_request(requests[0], predictor.metadata)).encode()
    headers = JSON | {"Content-Encoding": coding}
    answer = server.client.post(INFER, content=encode(body), headers=headers)
    np.testing.assert_array_equal(probabilities(answer), predictor.score(requests[0]))


def test_headers_that_name_a_coding_each_are_a_list_of_codings(server: Server) -> None:
    for codings in (("gzip", "gzip"), ("", "gzip"), ("gzip", "identity")):
        headers = [("Content-Encoding", coding) for coding in codings]
        response = server.client.post(INFER, content=gzip.compress(b"{}"), headers=headers)
        assert response.status_code == 415
        assert repr(", ".join(codings).strip()) in response.json()["error"]


def test_concurrent_clients_get_their_own_scores(
    server: Server, predictor: Predictor, requests: list[Request]
) -> None:
    batches = server.metric("cdp_batch_requests_count")
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(server.infer, requests * 3))
    for request, response in zip(requests * 3, responses, strict=True):
        expected = predictor.score(request)
        np.testing.assert_allclose(probabilities(response), expected, rtol=0, atol=CLOSE)
    assert server.metric("cdp_batch_requests_count") - batches < len(responses), "none was batched"


def test_unknown_models_versions_and_paths_are_not_found(
    server: Server, requests: list[Request]
) -> None:
    assert server.infer(requests[0], name="other").status_code == 404
    found = server.client.get(f"/v2/models/{NAME}/versions/1")
    assert found.status_code == 404 and "unknown version '1'" in found.json()["error"]
    assert server.client.get("/v1/models").json() == {"error": "Not Found"}
    assert server.client.get(INFER).status_code == 405


JSON = {"Content-Type": "application/json"}
MALFORMED = {
    "no body": (b"", JSON, 400, "body: "),
    "half a body": (b'{"inputs": [', JSON, 400, "body: "),
    "no text": (b"\xff\xfe", JSON, 400, "body: is no UTF-8"),
    "no UTF-8": (b'{"id": "\xff", "inputs": []}', JSON, 400, "body: is no UTF-8"),
    "deeply nested": (b"[" * 50_000, JSON, 400, "body: "),
    "deep parameters": (
        b'{"parameters": {"x": ' + b"[" * 50_000,
        JSON,
        400,
        "body: is nested too deeply",
    ),
    "endless integer": (b"1" * 50_000, JSON, 400, "body: "),
    "endless integer as a value": (
        b'{"inputs": [{"name": "user", "datatype": "INT64", "shape": [1], "data": ['
        + b"1" * 5_000
        + b"]}]}",
        JSON,
        400,
        "user: Integer value out of range",
    ),
    "no character": (b'{"id": "\\ud800", "inputs": []}', JSON, 400, "body: JSON is malformed"),
    "no object": (b"null", JSON, 400, "body: Expected `object`"),
    "no inputs": (b"{}", JSON, 400, "missing required field `inputs`"),
    "nothing in the inputs": (b'{"inputs": []}', JSON, 400, "timestamp_ms: is required"),
    "unknown field": (b'{"inputs": [], "input": 1}', JSON, 400, "unknown field `input`"),
    "id of the wrong type": (b'{"inputs": [], "id": 1}', JSON, 400, "id: Expected `str"),
    "endless id": (b'{"inputs": [], "id": "%s"}' % (b"x" * 50_000), JSON, 400, "id: has more than"),
    "endless name": (
        b'{"inputs": [{"name": "%s", "datatype": "", "shape": [1], "data": []}]}' % (b"x" * 50_000),
        JSON,
        400,
        "xxx ...",
    ),
    "incomplete input": (
        b'{"inputs": [{"name": "user"}]}',
        JSON,
        400,
        "user: Object missing required field `shape`",
    ),
    "only empty inputs": (
        b'{"inputs": [' + b"{}," * 9_000 + b"{}]}",
        JSON,
        400,
        "inputs[0]: Object missing required field `name`",
    ),
    "endless outputs": (
        b'{"inputs": [], "outputs": [' + b'{"name": "probability"},' * 3_000 + b"{}]}",
        JSON,
        400,
        "outputs: ",
    ),
    "outputs without a name": (b'{"inputs": [], "outputs": [{}]}', JSON, 400, "outputs: Object"),
    "outputs that are no list": (b'{"inputs": [], "outputs": 1}', JSON, 400, "outputs: Expected"),
    "too many values": (b'{"inputs": [' + b"0," * 20_000 + b"0]}", JSON, 413, "more than 10000"),
    "too large": (b" " * 100_001, JSON, 413, "more than 100000 bytes"),
    "another type": (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type"),
    "another encoding": (b"{}", JSON | {"Content-Encoding": "br"}, 415, "Content-Encoding"),
    "another encoding of nothing": (b"", JSON | {"Content-Encoding": "br"}, 400, "body: "),
    "two encodings": (
        gzip.compress(b"{}"),
        JSON | {"Content-Encoding": "identity, gzip"},
        415,
        "expected gzip or deflate, found 'identity, gzip'",
    ),
    "two members": (
        gzip.compress(b"{") + gzip.compress(b"}"),
        JSON | {"Content-Encoding": "gzip"},
        400,
        f"body: is no single gzip: {len(gzip.compress(b'}'))} bytes follow its end",
    ),
    "not compressed": (b"{}", JSON | {"Content-Encoding": "gzip"}, 400, "body: is no gzip"),
    "half compressed": (
        gzip.compress(b"{}")[:-4],
        JSON | {"Content-Encoding": "gzip"},
        400,
        "it ends too early",
    ),
    "a bomb": (
        gzip.compress(b" " * 10_000_000),
        JSON | {"Content-Encoding": "gzip"},
        413,
        "more than 100000 bytes",
    ),
    "tensors of no length": (
        b"{}",
        {"Inference-Header-Content-Length": "-1"},
        400,
        "Inference-Header-Content-Length",
    ),
    "tensors beyond the body": (
        b"{}",
        {"Inference-Header-Content-Length": "3"},
        400,
        "Inference-Header-Content-Length",
    ),
    "more than the tensors": (
        b'{"inputs": []}rest',
        {"Inference-Header-Content-Length": "14"},
        400,
        "body: 4 bytes follow the last tensor",
    ),
}


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"), MALFORMED.values(), ids=MALFORMED.keys()
)
def test_a_malformed_body_gets_an_error(
    server: Server, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    response = server.client.post(INFER, content=body, headers=headers)
    assert response.status_code == status
    assert text in response.json()["error"]


def test_a_body_of_unknown_length_is_bounded_too(server: Server) -> None:
    chunks = (b" " * 10_000 for _ in range(1000))
    response = server.client.post(INFER, content=chunks, headers=JSON)
    assert response.status_code == 413


WRONG: dict[str, tuple[Callable[[Request], Request], str]] = {
    "too many candidates": (
        lambda r: replace(r, candidates={"item_id": ["a"] * 51, "category_id": ["b"] * 51}),
        "candidates.item_id: 51 values, at most 50 are allowed",
    ),
    "no candidates": (
        lambda r: replace(r, candidates={"item_id": [], "category_id": []}),
        "candidates.item_id: the list is empty",
    ),
    "lists of two lengths": (
        lambda r: replace(r, candidates={"item_id": ["a", "b"], "category_id": ["c"]}),
        "candidates.category_id: 1 values, but there are 2 items",
    ),
    "a category short": (
        lambda r: replace(r, candidates={"item_id": ["a"]}),
        "candidates.category_id: is required",
    ),
    "negative id": (lambda r: replace(r, user=-5), "user: found the negative id -5"),
    "huge id": (lambda r: replace(r, user=2**70), "user: an id beyond 64 bits"),
    "younger history": (
        lambda r: replace(
            r,
            history=Behaviours(item=["a"], timestamp_ms=[r.timestamp_ms], category=["b"]),
        ),
        "history.timestamp_ms: a behaviour is not before the request",
    ),
}


@pytest.mark.parametrize(("spoil", "text"), WRONG.values(), ids=WRONG.keys())
def test_a_request_that_makes_no_sense_names_its_field(
    server: Server, requests: list[Request], spoil: Callable[[Request], Request], text: str
) -> None:
    response = server.infer(spoil(requests[0]))
    assert response.status_code == 400
    assert response.json()["error"].startswith(text)


@pytest.mark.parametrize(
    ("number", "text"),
    {
        "NaN": "body: JSON has no NaN (byte ",
        "Infinity": "body: JSON has no Infinity (byte ",
        "-Infinity": "body: JSON has no Infinity (byte ",
        "1e999": "candidates.log_price: Number out of range",
        "1e39": "candidates.log_price: expected a finite number",
    }.items(),
)
def test_a_number_that_is_not_finite_is_refused(
    server: Server, predictor: Predictor, requests: list[Request], number: str, text: str
) -> None:
    body = to_infer_request(requests[0], predictor.metadata)
    [prices] = [t for t in body["inputs"] if t["name"] == "candidates.log_price"]
    prices["data"] = ["?"] * len(prices["data"])
    content = json.dumps(body).replace('"?"', number)
    response = server.client.post(INFER, content=content, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"].startswith(text)


def test_others_are_answered_rightly_during_a_barrage_of_malformed_requests(
    server: Server, predictor: Predictor, requests: list[Request]
) -> None:
    def attack(number: int) -> int:
        body, headers, status, _ = list(MALFORMED.values())[number % len(MALFORMED)]
        response = server.client.post(INFER, content=body, headers=headers)
        return response.status_code - status

    expected = [predictor.score(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        attacks = [pool.submit(attack, number) for number in range(200)]
        answers = list(pool.map(server.infer, requests))
        assert all(attack.result() == 0 for attack in attacks)
    for answer, scores in zip(answers, expected, strict=True):
        np.testing.assert_allclose(probabilities(answer), scores, rtol=0, atol=CLOSE)


def test_a_full_queue_is_said_so_and_the_rest_is_answered(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    gated = GatedPredictor(predictor)
    server = start_server(gated, queue_length=2, timeout_s=30.0, max_wait_ms=0.0)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.infer, requests[0]) for _ in range(12)]
        # One is being scored, two wait: who is answered now is refused.
        wait(asked, return_when=FIRST_COMPLETED)
        gated.gate.set()
        answers = [future.result() for future in asked]
    refused = [answer for answer in answers if answer.status_code == 429]
    accepted = [answer for answer in answers if answer not in refused]
    assert len(accepted) >= 3 and len(refused) >= 1
    assert all(answer.headers["Retry-After"] == "1" for answer in refused)
    for answer in accepted:
        np.testing.assert_allclose(
            probabilities(answer), predictor.score(requests[0]), rtol=0, atol=CLOSE
        )
    assert server.metric('cdp_requests_total{status="429"}') == len(refused)


def test_a_request_that_takes_too_long_times_out_and_the_next_one_is_answered(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    gated = GatedPredictor(predictor)
    server = start_server(gated, timeout_s=0.3)
    response = server.infer(requests[0])
    assert response.status_code == 504
    assert response.json() == {"error": "not scored within 0.3 s"}
    assert server.client.get("/v2/health/live").status_code == 200
    gated.gate.set()
    while (again := server.infer(requests[0])).status_code == 504:
        pass
    np.testing.assert_array_equal(probabilities(again), predictor.score(requests[0]))


def test_a_body_that_does_not_arrive_times_out(
    start_server: Callable[..., Server], predictor: Predictor
) -> None:
    server = start_server(predictor, timeout_s=0.2)
    address = ("127.0.0.1", server.client.base_url.port or 0)
    with socket.create_connection(address, timeout=30) as slow:
        head = f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(address, timeout=30) as slow:
        slow.sendall(f"{head}Content-Length: {10**12}\r\n\r\n{{".encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 413 ")  # it could never arrive


def test_a_client_reads_why_its_body_was_refused_even_if_it_first_sends_everything(
    server: Server,
) -> None:
    address = ("127.0.0.1", server.client.base_url.port or 0)
    head = f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    for _ in range(5):
        with socket.create_connection(address, timeout=30) as client:
            client.sendall(f"{head}Content-Length: 9000000\r\n\r\n".encode() + b" " * 9_000_000)
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_score_that_is_not_finite_is_an_error_of_the_server(
    start_server: Callable[..., Server],
    predictor: Predictor,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = GatedPredictor(predictor)
    broken.gate.set()
    nothing = np.full(1000, np.nan, dtype=np.float32)
    monkeypatch.setattr(broken, "_score", lambda encoded: not_finite(nothing))
    server = start_server(broken)
    response = server.infer(requests[0])
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]
    assert server.client.get("/v2/health/live").status_code == 200


def not_finite(probability: np.ndarray) -> Any:
    raise FloatingPointError(f"{len(probability)} probabilities are not finite")


def test_before_the_first_artifact_is_loaded_the_server_is_live_but_not_ready(
    start_server: Callable[..., Server], requests: list[Request], predictor: Predictor
) -> None:
    server = start_server(None)
    assert server.client.get("/v2/health/live").status_code == 200
    ready = server.client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    body = to_infer_request(requests[0], predictor.metadata)
    assert server.client.post(INFER, json=body).status_code == 503
    assert server.client.post("/v2/repository/index").json() == []


def test_metrics_count_requests_batches_and_candidates(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    server = start_server(predictor)
    for request in requests[:3]:
        probabilities(server.infer(request))
    server.client.post(INFER, content=b"{", headers=JSON)
    assert server.metric('cdp_requests_total{status="200"}') == 3
    assert server.metric('cdp_requests_total{status="400"}') == 1
    assert server.metric("cdp_request_seconds_count") == 4
    assert server.metric("cdp_batch_requests_sum") == 3
    candidates = sum(len(request.candidates["item_id"]) for request in requests[:3])
    assert server.metric("cdp_batch_candidates_sum") == candidates
    assert server.metric("cdp_queue_length") == 0
    assert threading.active_count() < 50
