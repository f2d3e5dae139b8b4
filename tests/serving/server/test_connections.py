"""Nobody is shut out by those who open connections and say nothing, or too much at once."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import httpx
import pytest

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.connections import Connections
from cdp_torchrec.serving.server.metrics import ServerMetrics

from .conftest import INFER, GatedPredictor, Server, probabilities

TIMEOUT_S = 20.0


def connect(server: Server, sent: bytes = b"") -> socket.socket:
    port = server.client.base_url.port or 0
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends it before long."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize("sent", [b"", b"G", b"\r\n", b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_headers_that_do_not_arrive_end_the_connection(
    start_server: Callable[..., Server], predictor: Predictor, sent: bytes
) -> None:
    server = start_server(predictor, header_timeout_s=0.2)
    with connect(server, sent) as slow:
        assert is_closed(slow)
    assert server.metric('cdp_connections_closed_total{reason="headers late"}') == 1


def test_a_second_request_has_the_same_time_for_its_headers(
    start_server: Callable[..., Server], predictor: Predictor
) -> None:
    server = start_server(predictor, header_timeout_s=0.3)
    with connect(server, b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n") as slow:
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"G")
        assert is_closed(slow)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 300_000,
        b"GET /" + b"a" * 300_000,
        b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 50_000,
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000,
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 5_000,
    ],
    ids=["header", "path", "many headers", "trailers", "requests before an answer", "chunks"],
)
def test_headers_and_requests_without_end_are_cut_off(server: Server, sent: bytes) -> None:
    with connect(server) as greedy:
        try:
            greedy.sendall(sent)
        except ConnectionError:
            return
        assert is_closed(greedy)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: all\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"anything\r\n\r\n",
    ],
    ids=["length in words", "negative length", "no HTTP"],
)
def test_what_is_no_http_gets_an_error_in_json_too(server: Server, sent: bytes) -> None:
    with connect(server, sent) as malformed, malformed.makefile("rb") as answer:
        head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"content-length: {len(body)}\r\n".encode() in head
    assert json.loads(body) == {"error": "Invalid HTTP request received."}


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"


def answers(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as answer:
        return answer.read()


def test_an_offer_of_another_protocol_is_not_heard(server: Server) -> None:
    """Clients of Java make it with their first request, whatever it is."""
    body = b'{"inputs":[], "id":"\r\nUpgrade: "}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % INFER.encode()
    head += b"Content-Length: %d\r\n" % len(body)
    with connect(server, head + b"Connection: close\r\n\r\n" + body) as plain:
        expected = answers(plain).partition(b"\r\n\r\n")[2]
    assert b"truncated" not in expected
    for whole in (head + UPGRADE + b"\r\n" + body, head + UPGRADE.upper() + b"\r\n" + body):
        with connect(server, whole) as offering:
            offering.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            first, _, second = answers(offering).partition(expected)
        assert first.startswith(b"HTTP/1.1 400 ")
        assert second.startswith(b"HTTP/1.1 200 ")


def test_an_offer_in_pieces_is_refused_by_name(server: Server) -> None:
    with connect(server, b"POST /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpg") as offering:
        time.sleep(0.2)
        offering.sendall(b"rade: h2c\r\nContent-Length: 2\r\n\r\n{}")
        answer = answers(offering)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Upgrade: this server speaks HTTP/1.1 only" in answer


def test_a_transfer_coding_that_is_not_undone_is_refused(server: Server) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n" % INFER.encode()
    with connect(server, head + b"\r\n2\r\n{}\r\n0\r\n\r\n") as coded:
        answer = answers(coded)
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"Transfer-Encoding: expected chunked, found 'gzip, chunked'" in answer


def test_new_connections_take_the_place_of_those_that_wait_longest(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    server = start_server(predictor, max_connections=8, header_timeout_s=TIMEOUT_S)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(server, b"G")) for _ in range(40)]
        assert server.client.get("/v2/health/ready").status_code == 200
        assert len(probabilities(server.infer(requests[0]))) > 0
        assert all(is_closed(connection) for connection in silent[:30])
        assert server.metric("cdp_connections") <= 8


def test_one_client_has_no_more_than_its_share(
    start_server: Callable[..., Server], predictor: Predictor
) -> None:
    server = start_server(predictor, max_connections_per_client=3)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(server, b"G"))
        assert server.client.get("/v2/health/ready").status_code == 200
        assert server.metric("cdp_connections") <= 3


def test_health_is_answered_when_every_connection_is_busy(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    gated = GatedPredictor(predictor)
    server = start_server(gated, max_connections=2, timeout_s=TIMEOUT_S, max_wait_ms=0.0)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
    with ExitStack() as stack:

        def client_beside_others() -> httpx.Client:
            for _ in range(2):
                stack.enter_context(connect(server, head))
            return stack.enter_context(httpx.Client(base_url=server.client.base_url))

        deadline = time.monotonic() + TIMEOUT_S
        # A connection whose bytes a busy server has not yet seen is idle to it, and makes room.
        while (client := client_beside_others()).post(INFER, json={}).status_code != 503:
            assert time.monotonic() < deadline
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 200
        gated.gate.set()


def test_large_bodies_have_a_common_limit_and_small_ones_do_not_care(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    server = start_server(
        predictor, max_body_bytes=400_000, max_waiting_bytes=800_000, timeout_s=TIMEOUT_S
    )
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 390000\r\n\r\n".encode()
    with ExitStack() as stack:

        def post_beside_another() -> httpx.Response:
            stack.enter_context(connect(server, head + b" " * 380_000))
            return server.client.post(INFER, content=b" " * 390_000)

        deadline = time.monotonic() + TIMEOUT_S
        # On a busy machine the server may see the second one first, or have given up the first.
        while (answer := post_beside_another()).status_code != 429:
            assert time.monotonic() < deadline
        assert answer.headers["Retry-After"] == "1"
        assert len(probabilities(server.infer(requests[0]))) > 0


class RecordingLoop:
    """An event loop that does later only what it is told to do."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], object]] = []

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> mock.Mock:
        self.scheduled.append(lambda: callback(*args))
        return mock.Mock()


def idle_connection(loop: RecordingLoop) -> mock.Mock:
    idle = {"is_busy": False, "headers_since": None, "unread_since": None}
    return mock.Mock(loop=loop, host="10.0.0.1", **idle)


def test_connections_are_looked_at_in_one_round_however_many_come_and_go() -> None:
    connections, loop = Connections(ServerConfig(), ServerMetrics()), RecordingLoop()
    for _ in range(3):
        for _ in range(20):
            short = idle_connection(loop)
            assert connections.admit(short)
            connections.discard(short)
        assert len(loop.scheduled) == 1
        loop.scheduled.pop()()
        assert not loop.scheduled  # nothing is open
    assert connections.admit(idle_connection(loop))
    for _ in range(3):
        loop.scheduled.pop()()
        assert len(loop.scheduled) == 1


def test_an_answer_to_a_connection_that_is_gone_leaves_nothing_of_its_host() -> None:
    connections, loop = Connections(ServerConfig(), ServerMetrics()), RecordingLoop()
    gone = idle_connection(loop)
    assert connections.admit(gone)
    connections.discard(gone)
    connections.answered(gone)
    assert not connections._of_host
