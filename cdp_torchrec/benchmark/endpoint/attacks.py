"""What a valid client and a health check notice while others do their worst."""

import http.client
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from cdp_torchrec.benchmark import children
from cdp_torchrec.benchmark.endpoint.clients import Exchange, Target, ask, attack

_HALF_SENT = 300
_PROBE_S = 0.05
_SETTLE_S = 1.0
_LONGEST_ID = 1024

Attacker = Callable[[Target, Sequence[bytes], Callable[[], bool]], object]


@dataclass(frozen=True)
class Attack:
    """A way to get in others' way."""

    name: str
    run: Attacker
    bodies: Sequence[bytes]


@dataclass(frozen=True)
class Siege:
    """What was noticed during an attack."""

    name: str
    asked: Sequence[Exchange]
    """The valid client's."""
    health_ms: Sequence[float]
    """Of every health check."""
    rss_mib: float
    """Most memory of the server."""


def attacks(
    malformed: Sequence[bytes], body: dict[str, Any], *, max_body_bytes: int, max_history: int
) -> list[Attack]:
    """None, then all of them.

    Args:
        malformed: small bodies that are wrong.
        body: a valid request.
        max_body_bytes: what the server accepts at most.
        max_history: behaviours that a request may bring.
    """
    size = max_body_bytes * 15 // 16
    empty = b'{"inputs":[' + b"{}," * (size // 3) + b"{}]}"
    large = _with_long_history(body, size=size, num_behaviours=max_history)
    return [
        Attack("none", _nothing, ()),
        Attack("malformed bodies", _post, malformed),
        Attack(f"{len(empty) / 1e6:.1f} MB of errors", _post, [empty]),
        Attack("half-sent headers", _half_send, ()),
        Attack(f"valid bodies of {len(large) / 1e6:.1f} MB", _post, [large]),
    ]


def _with_long_history(body: dict[str, Any], *, size: int, num_behaviours: int) -> bytes:
    """The request with as many and as long behaviours as fit."""
    tensors = {t["name"]: t for t in body["inputs"] if not t["name"].startswith("history.")}
    moment = tensors["timestamp_ms"]["data"][0]
    length = min(_LONGEST_ID, size // (2 * num_behaviours) - 15)
    ids = [f"{n:d}".rjust(length, "x") for n in range(num_behaviours)]
    history = {
        "history.item": ("BYTES", ids),
        "history.category": ("BYTES", ids),
        "history.timestamp_ms": ("INT64", [moment - 1] * num_behaviours),
    }
    if "candidates.category_id" not in tensors:
        del history["history.category"]
    inputs = [
        *tensors.values(),
        *(
            {"name": name, "datatype": datatype, "shape": [num_behaviours], "data": data}
            for name, (datatype, data) in history.items()
        ),
    ]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def _nothing(target: Target, bodies: Sequence[bytes], is_over: Callable[[], bool]) -> None:
    while not is_over():
        time.sleep(_PROBE_S)


def _post(target: Target, bodies: Sequence[bytes], is_over: Callable[[], bool]) -> None:
    attack(target, bodies, is_over=is_over)


def _half_send(target: Target, bodies: Sequence[bytes], is_over: Callable[[], bool]) -> None:
    """As many half-sent requests as may be, each replaced when it is cut off."""
    held: list[socket.socket] = []
    while not is_over():
        try:
            connection = socket.create_connection((target.host, target.port), timeout=1.0)
            connection.sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            held.append(connection)
        except OSError:
            time.sleep(_PROBE_S)
        if len(held) >= _HALF_SENT:
            time.sleep(_PROBE_S)
            for connection in held[: _HALF_SENT // 10]:
                connection.close()
            del held[: _HALF_SENT // 10]
    for connection in held:
        connection.close()


def besiege(
    target: Target,
    pid: int,
    found: Sequence[Attack],
    bodies: Sequence[bytes],
    expected: Mapping[str, Sequence[np.ndarray]],
    *,
    num_attackers: int,
    duration_s: float,
) -> list[Siege]:
    """Run attacks one after the other, each from processes of its own.

    Args:
        target: the endpoint.
        pid: the server's process.
        found: the attacks.
        bodies: requests of the valid client.
        expected: their scores by the version of the model.
        num_attackers: processes of an attack.
        duration_s: of each attack.
    """
    return [_besiege(target, pid, a, bodies, expected, num_attackers, duration_s) for a in found]


def _besiege(
    target: Target,
    pid: int,
    found: Attack,
    bodies: Sequence[bytes],
    expected: Mapping[str, Sequence[np.ndarray]],
    num_attackers: int,
    duration_s: float,
) -> Siege:
    stop, is_over = multiprocessing.get_context("spawn").Event(), threading.Event()
    attackers: list[BaseProcess] = []
    with ThreadPoolExecutor(3) as pool:
        try:
            for _ in range(num_attackers):
                attackers.append(children.start(_attack_until, found, target, stop))
            time.sleep(_SETTLE_S)
            asking = pool.submit(ask, target, bodies, expected, first=0, is_over=is_over.is_set)
            probing = pool.submit(_probe, target, is_over)
            watching = pool.submit(_watch, pid, is_over)
            time.sleep(duration_s)
        finally:  # threads that go on would keep an interrupted process alive
            is_over.set()
            stop.set()
            for process in attackers:
                process.join()
        return Siege(found.name, asking.result(), probing.result(), watching.result())


def _attack_until(found: Attack, target: Target, stop: Event) -> None:
    found.run(target, found.bodies, stop.is_set)


def _probe(target: Target, is_over: threading.Event) -> list[float]:
    """Milliseconds of health checks, each on a connection of its own."""
    took: list[float] = []
    for _ in repeat(None):
        start = time.monotonic()
        connection = http.client.HTTPConnection(target.host, target.port, timeout=60)
        try:
            connection.request("GET", "/v2/health/ready")
            answered = connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            answered = False
        connection.close()
        took.append((time.monotonic() - start) * 1000 if answered else float("inf"))
        if is_over.wait(_PROBE_S):
            break
    return took


def _watch(pid: int, is_over: threading.Event) -> float:
    """Most resident memory in MiB."""
    most = 0
    while not is_over.wait(_PROBE_S):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):  # a server that has ended has none
                most = max(most, int(line.split()[1]))
    return most / 1024
