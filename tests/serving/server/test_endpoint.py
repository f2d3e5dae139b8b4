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

from .conftest import CLOSE, INFER, JSON, NAME, GatedPredictor, Server, probabilities


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
