"""Hostile requests beside valid ones, and damaged artifacts."""

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.export import raw_test_requests
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.server.protocol import to_infer_request
from tests.chaos.command import LIMIT_S, Command, Ended, free_port
from tests.chaos.damage import damage_one
from tests.chaos.outcome import Outcome, Verdict
from tests.chaos.world import ChaosError, World, copy_of

_INFER = "/v2/models/chaos/infer"
_JSON = {"Content-Type": "application/json"}
_TOLERANCE = 1e-6
_PATIENCE_S = 60.0
"""For an answer; a server that lets others wait for longer hangs."""
_RETRY_S = 1.0


@dataclass(frozen=True)
class Question:
    """A valid request and its scores."""

    body: dict[str, Any]
    scores: np.ndarray


class Server:
    """An artifact behind HTTP."""

    def __init__(self, command: Command, port: int, question: Question) -> None:
        """Use `served` instead."""
        self._command = command
        self._port = port
        self.question = question

    def is_right(self) -> bool:
        """Whether the valid request still gets its scores, if need be when the server is free."""
        body, deadline = json.dumps(self.question.body).encode(), time.monotonic() + _PATIENCE_S
        status, answer = self.post(body)
        while status in (503, 504) and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
            status, answer = self.post(body)
        if status != 200:
            return False
        found = np.array(json.loads(answer)["outputs"][0]["data"], dtype=np.float32)
        same = found.shape == self.question.scores.shape
        return bool(same and np.abs(found - self.question.scores).max() <= _TOLERANCE)

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and answer of an inference."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        try:
            connection.request("POST", _INFER, body, headers or _JSON)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send_raw(self, content: bytes) -> bytes:
        """Bytes that need not be HTTP, and the beginning of what comes back."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
            connection.sendall(content)
            with suppress(TimeoutError):
                return connection.recv(4096)
        return b""

    def wait(self) -> Ended:
        """Stop it."""
        self._command.send(signal.SIGTERM)
        return self._command.wait()


@contextmanager
def served(artifact: Path, question: Question, dataset: Path, folder: Path) -> Generator[Server]:
    """A server on a port of its own.

    Raises:
        ChaosError: it ended before it was ready; says its last words.
    """
    port = free_port()
    settings = [f"port={port}", "model_name=chaos", f"history_store={dataset}"]
    command = Command(folder, "serve", str(artifact), *settings)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not _is_ready(port):
            if not command.is_running or time.monotonic() > deadline:
                raise ChaosError(command.wait(1.0).output)
            time.sleep(0.05)
        yield Server(command, port, question)
    finally:
        command.send(signal.SIGKILL)


def first_question(world: World) -> Question:
    """A request of the test split, with its scores from the artifact."""
    requests = raw_test_requests(ExportedConfig.read(world.artifact))
    predictor = Predictor.open(world.artifact, history_store=world.dataset)
    body = to_infer_request(requests[0], predictor.metadata)
    return Question(body, predictor.score(requests[0]))


def hostile_request(server: Server, random: Random) -> Outcome:
    """Refused with 4xx, or answered if it happens to be valid; nobody else notices."""
    kind, send = random.choice(_ATTACKS)
    try:
        status = send(server, random)
    except TimeoutError:
        return Outcome(Verdict.HANG, f"{kind}: no answer within {_PATIENCE_S:.0f} s")
    except (OSError, http.client.HTTPException):
        status = 0  # it hung up, which is an answer
    if status >= 500 and status != 503:
        return Outcome(Verdict.TRACEBACK, f"{kind}: status {status}")
    try:
        right = server.is_right()
    except TimeoutError:
        return Outcome(Verdict.HANG, f"after {kind}: a valid request got no answer")
    except (OSError, http.client.HTTPException) as error:
        return Outcome(Verdict.LOST, f"after {kind}: a valid request got {error!r}")
    if not right:
        return Outcome(Verdict.WRONG, f"after {kind}: a valid request got no or other scores")
    verdict = Verdict.SURVIVED if status == 200 else Verdict.CLEAR_ERROR
    return Outcome(verdict, f"{kind}: status {status}")


def damaged_artifact(world: World, question: Question, scratch: Path, random: Random) -> Outcome:
    """Any file: it is refused, or scores as before."""
    artifact = copy_of(world.artifact, scratch / "artifact")
    done = damage_one(artifact, random)
    try:
        with served(artifact, question, world.dataset, scratch) as server:
            right = server.is_right()
    except ChaosError as error:
        said = str(error)
        is_ours = "error:" in said and 'File "' not in said
        verdict = Verdict.CLEAR_ERROR if is_ours else Verdict.TRACEBACK
        return Outcome(verdict, f"{done}: {said.strip().splitlines()[-1][:300] if said else ''}")
    return Outcome(Verdict.SURVIVED if right else Verdict.WRONG, done)


def _mutated(server: Server, random: Random) -> int:
    body = json.loads(json.dumps(server.question.body))
    for _ in range(random.randint(1, 3)):
        _mutate(body, random)
    return server.post(json.dumps(body).encode())[0]


def _mutate(body: Any, random: Random) -> None:
    """Change one place of a JSON value, any."""
    while True:
        keys = list(body) if isinstance(body, dict) else list(range(len(body)))
        if not keys:
            return
        key = random.choice(keys)
        inner = body[key]
        if isinstance(inner, dict | list) and inner and random.random() < 0.8:
            body = inner
            continue
        if random.random() < 0.15:
            del body[key]
        else:
            body[key] = random.choice(_VALUES)
        return


_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "\ud800",
    "\x00",
    "9" * 5000,
    "x" * 100_000,
    [],
    {},
    [[]],
    [None] * 1000,
    {"a": {"b": []}},
]


def _cut(server: Server, random: Random) -> int:
    text = json.dumps(server.question.body).encode()
    return server.post(text[: random.randrange(len(text))])[0]


def _noise(server: Server, random: Random) -> int:
    return server.post(random.randbytes(random.randint(1, 100_000)))[0]


def _deep(server: Server, random: Random) -> int:
    opening = random.choice([b"[", b'{"inputs":[', b'{"a":'])
    return server.post(opening * random.randint(10, 200_000))[0]


def _many_mistakes(server: Server, random: Random) -> int:
    item = random.choice(['{"name":1}', "{}", "[]", "null", '{"name":"x","shape":[],"data":[]}'])
    return server.post(f'{{"inputs":[{",".join([item] * random.randint(1, 200_000))}]}}'.encode())[
        0
    ]


def _many_candidates(server: Server, random: Random) -> int:
    body = json.loads(json.dumps(server.question.body))
    copies = random.randint(2, 5000)
    for tensor in body["inputs"]:
        if tensor["name"].startswith("candidates."):
            tensor["data"] = tensor["data"] * copies
            tensor["shape"] = [len(tensor["data"])]
    return server.post(json.dumps(body).encode())[0]


def _binary_lengths(server: Server, random: Random) -> int:
    length = random.choice(["-1", "0", "10", "99999999999", "1e3", "x", ""])
    headers = {
        "Inference-Header-Content-Length": length,
        "Content-Type": "application/octet-stream",
    }
    return server.post(json.dumps(server.question.body).encode(), headers)[0]


def _compressed(server: Server, random: Random) -> int:
    headers = _JSON | {"Content-Encoding": random.choice(["gzip", "deflate", "br", "zstd"])}
    return server.post(random.randbytes(1000), headers)[0]


def _not_http(server: Server, random: Random) -> int:
    lines = [
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + _INFER.encode() + b" HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST " + _INFER.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /v2/health/live HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        random.randbytes(5000),
    ]
    answer = server.send_raw(random.choice(lines))
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1") else 400


_ATTACKS: list[tuple[str, Callable[[Server, Random], int]]] = [
    ("changed values", _mutated),
    ("changed values", _mutated),
    ("a cut body", _cut),
    ("noise", _noise),
    ("deep nesting", _deep),
    ("many mistakes", _many_mistakes),
    ("many candidates", _many_candidates),
    ("binary lengths", _binary_lengths),
    ("compression", _compressed),
    ("no HTTP", _not_http),
]


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
