"""What is malformed or makes no sense gets an error that says what, and disturbs nobody."""

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.server.protocol import to_infer_request

from .conftest import CLOSE, INFER, JSON, Server, probabilities

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
