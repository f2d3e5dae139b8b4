"""Another artifact takes over between two requests, or not at all."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.serving.artifact import TABLES
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.served_model import ServedModel

from .conftest import CLOSE, NAME, Server, probabilities

LOAD = f"/v2/repository/models/{NAME}/load"


@pytest.fixture
def current(artifact: Path, tmp_path: Path) -> Path:
    """A link to the artifact in service."""
    link = tmp_path / "current"
    link.symlink_to(artifact)
    return link


def point(link: Path, artifact: Path) -> None:
    new = link.with_name("next")
    new.symlink_to(artifact)
    new.rename(link)


def test_reloads_under_load_lose_nothing_and_mix_nothing(
    start_server: Callable[..., Server],
    current: Path,
    artifact: Path,
    other_artifact: Path,
    predictor: Predictor,
    tiny_dataset: Path,
    requests: list[Request],
) -> None:
    other = Predictor.open(other_artifact, history_store=tiny_dataset)
    expected = {
        model.metadata.version: [model.score(request) for request in requests]
        for model in (predictor, other)
    }
    [old_scores, new_scores] = expected.values()
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(old_scores, new_scores, strict=True))
    server = start_server(predictor, artifact=current, timeout_s=30.0)
    is_over = threading.Event()

    def ask() -> dict[str, int]:
        answers = dict.fromkeys(expected, 0)
        number = 0
        while not is_over.is_set():
            number = (number + 1) % len(requests)
            response = server.infer(requests[number])
            version = response.json()["model_version"]
            np.testing.assert_allclose(
                probabilities(response), expected[version][number], rtol=0, atol=CLOSE
            )
            answers[version] += 1
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for directory in (other_artifact, artifact, other_artifact):
                point(current, directory)
                assert server.client.post(LOAD).json() == {}
        finally:
            is_over.set()
        answers = [future.result() for future in asking]
    for version in expected:
        assert sum(answer[version] for answer in answers) > 0
    last = server.infer(requests[0])
    assert last.json()["model_version"] == other.metadata.version
    assert server.metric('cdp_model_loads_total{result="loaded"}') == 3


def test_a_broken_artifact_is_refused_and_the_old_one_stays(
    start_server: Callable[..., Server],
    current: Path,
    copied: Path,
    predictor: Predictor,
    requests: list[Request],
) -> None:
    server = start_server(predictor, artifact=current)
    (copied / "golden.json").write_text("{}")
    point(current, copied)
    response = server.client.post(LOAD)
    assert response.status_code == 400
    assert "the previous one stays" in response.json()["error"]
    assert "golden.json: altered after the export" in response.json()["error"]
    np.testing.assert_array_equal(
        probabilities(server.infer(requests[0])), predictor.score(requests[0])
    )
    assert server.metric('cdp_model_loads_total{result="refused"}') == 1


def test_a_trusted_key_that_is_gone_is_said_and_the_old_one_stays(
    start_server: Callable[..., Server],
    predictor: Predictor,
    requests: list[Request],
    tmp_path: Path,
) -> None:
    server = start_server(predictor, trusted_keys=(tmp_path / "gone.pub",))
    response = server.client.post(LOAD)
    assert response.status_code == 400
    assert "gone.pub: No such file or directory" in response.json()["error"]
    assert len(probabilities(server.infer(requests[0]))) > 0


def test_only_the_served_model_can_be_loaded(
    start_server: Callable[..., Server], predictor: Predictor
) -> None:
    response = start_server(predictor).client.post("/v2/repository/models/other/load")
    assert response.status_code == 404


def test_a_server_applies_a_delta_or_keeps_what_it_serves(
    start_server: Callable[..., Server],
    released: Path,
    tiny_dataset: Path,
    requests: list[Request],
) -> None:
    served = Predictor.open(released / "full-0", history_store=tiny_dataset)
    link = released / "current"
    point(link, released / "full-0")
    server = start_server(served, artifact=link)

    def follow(name: str) -> dict[str, str]:
        point(link, released / name)
        return server.client.post(LOAD).json()

    # What was read at the start is not read again.
    for path in (released / "full-0" / TABLES).iterdir():
        path.rename(released / path.name)
    shutil.copytree(released / "delta-1", released / "spoilt")
    (released / "spoilt" / "rows" / "item-index.npy").write_bytes(b"cut")
    assert "the previous one stays" in follow("spoilt")["error"]
    assert server.infer(requests[0]).json()["model_version"] == served.metadata.version
    patched = served.apply(released / "delta-1").apply(released / "delta-2")
    assert follow("delta-1") == {} and follow("delta-2") == {}
    answer = server.infer(requests[0])
    assert answer.json()["model_version"] == patched.metadata.version
    np.testing.assert_array_equal(probabilities(answer), patched.score(requests[0]))


def test_a_server_that_stops_while_it_loads_ends_after_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is cut off in C++ code aborts the process."""
    began, may_end = threading.Event(), threading.Event()
    failures: list[threading.ExceptHookArgs] = []

    def open_slowly(*_: object, **__: object) -> None:
        began.set()
        assert may_end.wait(60)

    async def stop_in_mid_load() -> None:
        loading = asyncio.create_task(model.load())
        await asyncio.to_thread(began.wait)
        loading.cancel()

    monkeypatch.setattr(Predictor, "open", open_slowly)
    monkeypatch.setattr(threading, "excepthook", failures.append)
    model = ServedModel(tmp_path, ServerConfig(), ServerMetrics())
    asyncio.run(stop_in_mid_load())
    [loader] = [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert not loader.daemon
    may_end.set()
    loader.join()
    assert not failures
