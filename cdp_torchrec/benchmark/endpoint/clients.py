"""Clients of an endpoint under test: they ask without pause, and check every answer."""

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np

# Another batch, another order of sums.
_TOLERANCE = 1e-6
_JSON = {"Content-Type": "application/json"}

Outcome = Literal["right", "wrong", "refused", "lost"]


@dataclass(frozen=True)
class Exchange:
    """What one request came to."""

    start: float
    """Of time.monotonic."""
    stop: float
    outcome: Outcome
    """"refused": an error with a status; "lost": no answer."""
    version: str = ""
    """The model that answered."""
    detail: str = ""
    """Status or exception, where there are no scores."""


@dataclass(frozen=True)
class Target:
    """Where to send inferences."""

    host: str
    port: int
    path: str
    timeout_s: float


def ask(
    target: Target,
    bodies: Sequence[bytes],
    expected: Mapping[str, Sequence[np.ndarray]],
    *,
    first: int,
    is_over: Callable[[], bool],
) -> list[Exchange]:
    """Send valid requests in turn, and compare each answer with the scores it should have.

    Args:
        target: the endpoint.
        bodies: requests.
        expected: scores of every request by the version of the model.
        first: request to begin with.
        is_over: asked between two requests.
    """
    numbers = cycle([*range(first, len(bodies)), *range(first)])

    def judge(status: int, answer: bytes, number: int) -> tuple[Outcome, str, str]:
        if status != 200:
            return "refused", "", f"{status} {answer[:200].decode(errors='replace')}"
        content = json.loads(answer)
        version = content["model_version"]
        found = np.array(content["outputs"][0]["data"], dtype=np.float32)
        scores = expected[version][number]
        is_right = found.shape == scores.shape and np.abs(found - scores).max() <= _TOLERANCE
        return ("right" if is_right else "wrong"), version, ""

    return list(_exchanges(target, bodies, numbers, judge, is_over))


def attack(
    target: Target, bodies: Sequence[bytes], *, is_over: Callable[[], bool]
) -> list[Exchange]:
    """Send malformed requests in turn; it is right to refuse them with 4xx."""

    def judge(status: int, answer: bytes, number: int) -> tuple[Outcome, str, str]:
        is_right = 400 <= status < 500 and b'"error"' in answer
        return ("right" if is_right else "wrong"), "", str(status)

    return list(_exchanges(target, bodies, cycle(range(len(bodies))), judge, is_over))


def _exchanges(
    target: Target,
    bodies: Sequence[bytes],
    numbers: Iterator[int],
    judge: Callable[[int, bytes, int], tuple[Outcome, str, str]],
    is_over: Callable[[], bool],
) -> Iterator[Exchange]:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=target.timeout_s)
    while not is_over():
        number = next(numbers)
        start = time.monotonic()
        try:
            connection.request("POST", target.path, bodies[number], _JSON)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            yield Exchange(start, time.monotonic(), "lost", detail=repr(error))
            continue
        stop = time.monotonic()
        outcome, version, detail = judge(response.status, answer, number)
        yield Exchange(start, stop, outcome, version, detail)
    connection.close()


def malformed_bodies(body: dict[str, Any], *, max_body_bytes: int) -> list[bytes]:
    """Ways in which a valid request goes wrong on its way from a client.

    Args:
        body: a valid request.
        max_body_bytes: what the server accepts at most.
    """
    text = json.dumps(body)
    tensors = body["inputs"]

    def without(name: str) -> str:
        return json.dumps({"inputs": [t for t in tensors if t["name"] != name]})

    def changed(name: str, **fields: Any) -> str:
        found = [t | fields if t["name"] == name else t for t in tensors]
        return json.dumps({"inputs": found})

    texts = [
        "",
        text[: len(text) // 2],
        "[" * 10_000,
        "null",
        json.dumps({"inputs": [*tensors, tensors[0]]}),
        json.dumps({"inputs": [*tensors, tensors[0] | {"name": "features.unknown"}]}),
        without("timestamp_ms"),
        without("candidates.item_id"),
        changed("candidates.item_id", data=[], shape=[0]),
        changed("candidates.item_id", shape=[1_000_000]),
        changed("candidates.item_id", datatype="FP32"),
        changed("timestamp_ms", data=[-1]),
        changed("timestamp_ms", data=[float("nan")]),
        changed("timestamp_ms", data=[10**30]),
    ]
    too_large = b" " * (max_body_bytes + 1)
    return [*(t.encode() for t in texts), b"\xff\xfe", too_large]
