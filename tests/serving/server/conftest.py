"""Servers on free ports, and a second artifact that scores differently."""

import asyncio
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cdp_torchrec.serving.artifact import TABLES
from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.batching import Batcher
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.inference import Inferences
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.protocol import to_infer_request
from cdp_torchrec.serving.server.run import make_server
from cdp_torchrec.serving.server.served_model import LoadedModel, ServedModel
from tests.serving.conftest import complete

NAME = "synthetic-cdp"
INFER = f"/v2/models/{NAME}/infer"
JSON = {"Content-Type": "application/json"}
CLOSE = 1e-6  # another batch, another order of sums
STOP_S = 120.0  # a stopping server waits 61 s for its connections at most


class GatedPredictor(Predictor):
    """Scores as another one does, but not before its gate opens."""

    def __init__(self, inner: Predictor) -> None:
        self.__dict__.update(inner.__dict__)
        self.gate = threading.Event()

    def score_encoded(self, encoded: Sequence[EncodedRequest]) -> list[np.ndarray]:
        assert self.gate.wait(30)
        return super().score_encoded(encoded)


@dataclass(frozen=True)
class Server:
    client: httpx.Client
    model: ServedModel
    metrics: ServerMetrics

    def infer(self, request: Request, *, name: str = NAME, **fields: Any) -> httpx.Response:
        assert self.model.current is not None
        body = to_infer_request(request, self.model.current.metadata) | fields
        return self.client.post(f"/v2/models/{name}/infer", json=body)

    def metric(self, sample: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{sample} "))


def probabilities(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    [output] = response.json()["outputs"]
    assert (output["name"], output["datatype"]) == ("probability", "FP32")
    assert output["shape"] == [len(output["data"])]
    return np.array(output["data"], dtype=np.float32)


@contextmanager
def running(
    artifact: Path, predictor: Predictor | None, history_store: Path, **settings: Any
) -> Iterator[Server]:
    """A server whose thread ends with the block."""
    config = ServerConfig(model_name=NAME, history_store=history_store, **settings)
    metrics = ServerMetrics()
    model = ServedModel(artifact, config, metrics)
    model.current = None if predictor is None else LoadedModel.of(predictor)
    batcher = Batcher(config, metrics)
    inferences = Inferences(batcher, metrics, config)
    server = make_server(model, inferences, metrics, config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = server.serve(sockets=[listener])
        thread = threading.Thread(target=asyncio.run, args=(serving,))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Server(client, model, metrics)
        finally:
            server.should_exit = True
            within(STOP_S, thread.join, inferences.close, batcher.close)


def within(limit_s: float, *steps: Callable[[], object]) -> None:
    """Do steps one after the other; where one hangs, say on one line where all threads are."""

    def do() -> None:
        for step in steps:
            step()

    doing = threading.Thread(target=do, daemon=True)
    doing.start()
    doing.join(limit_s)
    if doing.is_alive():
        frames = sys._current_frames()
        stacks = [
            (t.name, traceback.extract_stack(frames[t.ident or 0])) for t in threading.enumerate()
        ]
        places = [
            (name, " < ".join(f"{f.filename}:{f.lineno}" for f in s[::-1])) for name, s in stacks
        ]
        pytest.fail(f"not done after {limit_s} s: {places}")


@pytest.fixture(scope="session")
def server(artifact: Path, predictor: Predictor, tiny_dataset: Path) -> Iterator[Server]:
    """One for all tests that leave it as it is."""
    limits = {"max_body_bytes": 100_000, "max_body_values": 10_000}
    with running(artifact, predictor, tiny_dataset, timeout_s=30.0, **limits) as it:
        yield it


@pytest.fixture
def start_server(artifact: Path, tiny_dataset: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with settings of their own."""
    with ExitStack() as stack:
        yield lambda predictor, **settings: stack.enter_context(
            running(settings.pop("artifact", artifact), predictor, tiny_dataset, **settings)
        )


@pytest.fixture(scope="session")
def other_artifact(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same artifact with other embeddings of items, whole and with a golden request."""
    other = Path(shutil.copytree(artifact, tmp_path_factory.mktemp("other") / "artifact"))
    for path in (other / TABLES).glob("item-*.npy"):
        np.save(path, -np.load(path))
    return complete(other)
