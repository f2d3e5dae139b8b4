"""Clients of the endpoint benchmark tell right answers from wrong and lost ones, and count them."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.benchmark.endpoint.attacks import Siege
from cdp_torchrec.benchmark.endpoint.clients import (
    Exchange,
    Target,
    ask,
    attack,
    malformed_bodies,
)
from cdp_torchrec.benchmark.endpoint.config import EndpointSettings
from cdp_torchrec.benchmark.endpoint.load import Clients
from cdp_torchrec.benchmark.endpoint.one_request import RequestCost
from cdp_torchrec.benchmark.endpoint.report import (
    EndpointError,
    EndpointLoad,
    Reload,
    as_json,
    as_markdown,
)
from tests.squeeze import squeezed

SCORES = {"v1": [np.array([0.25, 0.5]), np.array([0.75])]}
BODIES = [b"request 0", b"request 1"]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers a body as `answer` says: status and body, or None for none at all."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[bytes], tuple[int, bytes] | None]

    def do_POST(self) -> None:
        found = type(self).answer(self.rfile.read(int(self.headers["Content-Length"])))
        if found is None:
            self.close_connection = True
            return
        self.send_response(found[0])
        self.send_header("Content-Length", str(len(found[1])))
        self.end_headers()
        self.wfile.write(found[1])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[bytes], tuple[int, bytes] | None]], Target]]:
    servers = []

    def start(answer: Callable[[bytes], tuple[int, bytes] | None]) -> Target:
        handler = type("Handler", (Answers,), {"answer": staticmethod(answer)})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return Target("127.0.0.1", server.server_port, "/infer", timeout_s=10)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def times(count: int) -> Callable[[], bool]:
    """Over after so many requests."""
    left = iter([False] * count)
    return lambda: next(left, True)


def scored(version: str, scores: list[float]) -> tuple[int, bytes]:
    content = {"model_version": version, "outputs": [{"data": scores}]}
    return 200, json.dumps(content).encode()


# --- clients -------------------------------------------------------------------------------------


def test_a_client_asks_all_requests_in_turn_from_its_first_one(serve: Any) -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> tuple[int, bytes]:
        asked.append(body)
        return scored("v1", SCORES["v1"][BODIES.index(body)].tolist())

    exchanges = ask(serve(answer), BODIES, SCORES, first=1, is_over=times(3))
    assert asked == [BODIES[1], BODIES[0], BODIES[1]]
    assert [(e.outcome, e.version) for e in exchanges] == [("right", "v1")] * 3
    assert all(e.start < e.stop for e in exchanges)
    assert all(a.stop <= b.start for a, b in pairwise(exchanges))


@pytest.mark.parametrize(
    ("answer", "outcome", "detail"),
    [
        (scored("v1", [0.25, 0.5]), "right", ""),
        (scored("v1", [0.25, 0.5000005]), "right", ""),  # another order of sums
        (scored("v1", [0.25, 0.51]), "wrong", ""),
        (scored("v1", [0.25]), "wrong", ""),
        ((429, b'{"error": "busy"}'), "refused", '429 {"error": "busy"}'),
        (None, "lost", "RemoteDisconnected"),
    ],
    ids=["right", "close", "wrong", "short", "refused", "lost"],
)
def test_every_answer_is_compared_with_the_scores_it_should_have(
    serve: Any, answer: tuple[int, bytes] | None, outcome: str, detail: str
) -> None:
    (exchange,) = ask(serve(lambda _: answer), BODIES, SCORES, first=0, is_over=times(1))
    assert exchange.outcome == outcome
    assert exchange.detail.startswith(detail)


def test_a_client_goes_on_after_a_lost_answer(serve: Any) -> None:
    answers = iter([None, scored("v1", [0.75]), scored("v1", [0.25, 0.5])])
    target = serve(lambda _: next(answers))
    exchanges = ask(target, BODIES, SCORES, first=0, is_over=times(3))
    assert [e.outcome for e in exchanges] == ["lost", "right", "right"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ((400, b'{"error": "no"}'), "right"),
        ((400, b"no"), "wrong"),
        ((200, b'{"error": "no"}'), "wrong"),
        ((500, b'{"error": "no"}'), "wrong"),
        (None, "lost"),
    ],
)
def test_a_malformed_request_is_answered_right_with_a_refusal_that_explains(
    serve: Any, answer: tuple[int, bytes] | None, outcome: str
) -> None:
    (exchange,) = attack(serve(lambda _: answer), [b"{"], is_over=times(1))
    assert exchange.outcome == outcome


def test_malformed_bodies_differ_from_the_request_and_from_each_other() -> None:
    tensors = [
        {"name": name, "datatype": "INT64", "shape": [1], "data": [7]}
        for name in ("timestamp_ms", "candidates.item_id")
    ]
    body = {"inputs": tensors}
    bodies = malformed_bodies(body, max_body_bytes=1000)
    assert len(set(bodies)) == len(bodies) > 10
    assert json.dumps(body).encode() not in bodies
    assert len(bodies[-1]) == 1001  # one byte more than the server accepts


# --- figures -------------------------------------------------------------------------------------


def exchange(start: float, stop: float, **fields: Any) -> Exchange:
    return replace(Exchange(start, stop, "right", "v1"), **fields)


LOAD = EndpointLoad(
    asked=[
        exchange(10.0, 10.010),
        exchange(10.5, 10.520),
        exchange(11.9, 12.020, version="v2"),
        exchange(19.97, 20.0, version="v2"),
    ],
    attacked=[exchange(11.0, 11.001, detail="400"), exchange(11.1, 11.2, detail="413")],
    sieges=[
        Siege("none", [exchange(20.0, 20.01), exchange(20.1, 20.12)], [1.0, 2.4], 100.0),
        Siege("storm", [exchange(21.0, 21.1), exchange(21.2, 21.3)], [3.0, 4.6], 120.4),
    ],
    reload=Reload(start=10.51, stop=12.0, answer="200 {}"),
    alone=RequestCost(encode=0.1, inputs=0.6, rank=0.2),
    server_cpu_s=0.0064,
    exit_code=0,
    num_candidates=25.0,
    load_before=0.5,
    load_after=1.5,
)


def test_figures_are_those_of_known_exchanges() -> None:
    load = replace(LOAD, asked=[*LOAD.asked, exchange(10.1, 10.2, outcome="refused")])
    shown = squeezed(as_markdown(load))
    for line in (
        "| requests per second | 0.4 |",
        "| candidates per second | 10 |",
        "| latency p50, p99, max (ms) | 25.0, 117.3, 120.0 |",
        "| the same during the reload | 70.0, 119.0, 120.0 |",
        "| CPU of the server, ms a valid request | 1.60 |",
        "| without a server: encode, inputs, rank (CPU ms) | 0.100, 0.600, 0.200 |",
        "| reload (s) | 1.5 |",
        "| valid requests | 0 lost, 1 refused, 4 right, 0 wrong |",
        "| answered by version | 2 v1, 2 v2 |",
        "| their statuses | 1 400, 1 413 |",
        "| none | 15.0, 19.9, 20.0 | 0 lost, 0 refused, 2 right, 0 wrong | 2 | 100 |",
        "| storm | 100.0, 100.0, 100.0 | 0 lost, 0 refused, 2 right, 0 wrong | 5 | 120 |",
    ):
        assert line in shown
    numbers = json.loads(json.dumps(as_json(load)))
    assert numbers["latency_during_reload_ms"]["p50"] == pytest.approx(70.0)
    assert numbers["valid_requests"] == {"right": 4, "refused": 1}


def test_a_load_without_mistakes_passes() -> None:
    LOAD.check()
    refused = replace(LOAD, asked=[*LOAD.asked, exchange(10.1, 10.2, outcome="refused")])
    refused.check()  # a busy server may refuse


@pytest.mark.parametrize(
    "changes",
    [
        {"asked": [exchange(10.0, 10.1, outcome="wrong")]},
        {"asked": [exchange(10.0, 10.1, outcome="lost")]},
        {"attacked": [exchange(10.0, 10.1, outcome="wrong")]},
        {"sieges": [Siege("storm", [exchange(1.0, 1.1, outcome="lost")], [1.0], 1.0)]},
        {"reload": Reload(start=1.0, stop=2.0, answer="400 {}")},
        {"exit_code": -15},
    ],
)
def test_a_load_with_a_mistake_fails(changes: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="answers wrong or lost"):
        replace(LOAD, **changes).check()


def test_an_interrupted_load_ends_its_clients(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    target = serve(lambda body: (200, b"{}"))
    settings = EndpointSettings(num_clients=2, num_attackers=1, duration_s=60)
    before = threading.active_count()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Clients(target, settings) as clients:
        clients.start(BODIES, SCORES, [b"bad"])
        assert threading.active_count() > before
        monkeypatch.setattr("time.sleep", interrupt)
        clients.wait_until(1.0)
    monkeypatch.undo()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]
