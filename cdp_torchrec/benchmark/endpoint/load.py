"""A server under load on loopback, with a reload and malformed input meanwhile."""

import http.client
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import numpy as np

from cdp_torchrec.benchmark import children
from cdp_torchrec.benchmark.endpoint.attacks import attacks, besiege
from cdp_torchrec.benchmark.endpoint.clients import (
    Exchange,
    Target,
    ask,
    attack,
    malformed_bodies,
)
from cdp_torchrec.benchmark.endpoint.config import EndpointBenchmarkConfig, EndpointSettings
from cdp_torchrec.benchmark.endpoint.one_request import measure_requests
from cdp_torchrec.benchmark.endpoint.report import EndpointError, EndpointLoad, Reload
from cdp_torchrec.environment import quiet_libraries
from cdp_torchrec.progress import progress
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.export import raw_test_requests
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.protocol import to_infer_request
from cdp_torchrec.serving.server.run import serve

_NAME = "model"
_PATIENCE_S = 300.0
_ALONE = 100
"""Requests whose steps are timed without a server."""


def measure_endpoint(artifact: Path, config: EndpointBenchmarkConfig) -> EndpointLoad:
    """Start a server, load it, reload it half-way, and stop it.

    Args:
        artifact: directory of an artifact.
        config: the load and the server.

    Raises:
        ArtifactError: an artifact cannot be served.
        EndpointError: the server does not start.
    """
    settings = config.benchmark
    exported = ExportedConfig.read(artifact)
    dataset = settings.dataset or exported.data.dir
    data = exported.data.model_copy(update={"dir": dataset})
    exported = exported.model_copy(update={"data": data})
    requests = raw_test_requests(exported)[: settings.num_requests]
    before, after = artifact.resolve(), (settings.reload or artifact).resolve()
    predictors = [Predictor.open(path, history_store=dataset) for path in (before, after)]
    metadata, expected = predictors[0].metadata, _expected_scores(predictors, requests)
    alone = measure_requests(predictors[0], requests[:_ALONE])
    bodies = [json.dumps(to_infer_request(r, metadata)).encode() for r in requests]

    places = {"port": _free_port(), "model_name": _NAME, "history_store": dataset}
    server = config.server.model_copy(update=places)
    target = Target(
        server.host, server.port, f"/v2/models/{_NAME}/infer", timeout_s=4 * server.timeout_s
    )
    bad = malformed_bodies(json.loads(bodies[0]), max_body_bytes=server.max_body_bytes)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "current")
        link.symlink_to(before)
        process = children.start(_serve, link, server)
        try:
            _wait_until_ready(target, process)
            assert process.pid is not None
            server_s = _cpu_s(process.pid)
            with Clients(target, settings) as clients:
                clients.start(bodies, expected, bad)
                clients.wait_until(0.5)
                link.unlink()
                link.symlink_to(after)
                reload = _reload(target)
                clients.wait_until(1.0)
                asked, attacked = clients.stop()
            server_s = _cpu_s(process.pid) - server_s
            sieges = (
                besiege(
                    target,
                    process.pid,
                    attacks(
                        bad,
                        json.loads(bodies[0]),
                        max_body_bytes=server.max_body_bytes,
                        max_history=metadata.max_history,
                    ),
                    bodies,
                    expected,
                    num_attackers=max(1, settings.num_attackers),
                    duration_s=settings.attack_s,
                )
                if settings.attack_s
                else []
            )
        finally:
            process.terminate()
            process.join(_PATIENCE_S)
            process.kill()
    return EndpointLoad(
        asked=asked,
        attacked=attacked,
        sieges=sieges,
        reload=reload,
        alone=alone,
        server_cpu_s=server_s,
        exit_code=process.exitcode,
        num_candidates=statistics.mean(len(r.candidates["item_id"]) for r in requests),
        load_before=load_before,
        load_after=os.getloadavg()[0],
    )


def _expected_scores(
    predictors: Sequence[Predictor], requests: Sequence[Request]
) -> dict[str, list[np.ndarray]]:
    """Scores of every request by the artifacts' versions."""
    return {
        predictor.metadata.version: [
            predictor.score(request)
            for request in progress(requests, "expected scores", unit="requests")
        ]
        for predictor in predictors
    }


def _serve(artifact: Path, config: ServerConfig) -> None:
    quiet_libraries()
    serve(artifact, config)


class Clients:
    """The clients, each in a thread; none of them outlives the block, however it ends."""

    def __init__(self, target: Target, settings: EndpointSettings) -> None:
        self._target = target
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.num_clients + settings.num_attackers)
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()

    def start(
        self,
        bodies: Sequence[bytes],
        expected: dict[str, list[np.ndarray]],
        bad: Sequence[bytes],
    ) -> None:
        """Ask and attack from now on.

        Args:
            bodies: valid requests.
            expected: scores of every request by the version of the model.
            bad: malformed ones.
        """
        self._start = time.monotonic()
        is_over = self._is_over.is_set
        step = -(-len(bodies) // self._settings.num_clients)
        self._asking: list[Future[list[Exchange]]] = [
            self._pool.submit(
                ask, self._target, bodies, expected, first=n * step % len(bodies), is_over=is_over
            )
            for n in range(self._settings.num_clients)
        ]
        self._attacking = [
            self._pool.submit(attack, self._target, bad, is_over=is_over)
            for _ in range(self._settings.num_attackers)
        ]

    def wait_until(self, share: float) -> None:
        """Wait for a share of the duration to be over."""
        remaining = self._start + share * self._settings.duration_s - time.monotonic()
        time.sleep(max(0.0, remaining))

    def stop(self) -> tuple[list[Exchange], list[Exchange]]:
        """End the load: what was asked, and what the attacks got."""
        self._is_over.set()
        asked = [exchange for client in self._asking for exchange in client.result()]
        attacked = [exchange for client in self._attacking for exchange in client.result()]
        return asked, attacked


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _wait_until_ready(target: Target, process: BaseProcess) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.is_alive():
        try:
            connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise EndpointError("the server did not become ready; what it said is above")


def _reload(target: Target) -> Reload:
    start = time.monotonic()
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_PATIENCE_S)
    try:
        connection.request("POST", f"/v2/repository/models/{_NAME}/load")
        response = connection.getresponse()
        answer = f"{response.status} {response.read().decode()}"
    except (OSError, http.client.HTTPException) as error:
        answer = f"{type(error).__name__}: {error}"
    return Reload(start, time.monotonic(), answer)
