"""What requests leave out is counted, and refused where the server is strict."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.served_model import ServedModel

from .conftest import Server, probabilities

NO_STORE = "reads histories, and there is no history_store"


def test_gaps_are_counted_by_feature(
    start_server: Callable[..., Server],
    predictor: Predictor,
    requests: list[Request],
    behaviours: list[Behaviours],
) -> None:
    server = start_server(predictor)
    number = next(n for n, known in enumerate(behaviours) if known.item)
    whole, count = requests[number], len(requests[number].candidates["item_id"])
    probabilities(server.infer(whole))
    before = server.client.get("/metrics").text
    assert "cdp_empty_histories_total 0.0" in before and 'feature="log_price"' not in before

    candidates = dict(whole.candidates) | {"item_id": ["new"] * count}
    del candidates["log_price"]
    probabilities(server.infer(replace(whole, user="nobody", candidates=candidates, features={})))
    assert server.metric("cdp_empty_histories_total") == 1
    assert server.metric('cdp_unknown_ids_total{feature="item_id"}') == count
    assert server.metric('cdp_unknown_ids_total{feature="user_id"}') == 1
    assert server.metric('cdp_missing_values_total{feature="log_price"}') == count
    assert server.metric('cdp_missing_values_total{feature="hour"}') == 1

    own = Behaviours(item=[], timestamp_ms=[], category=[])
    probabilities(server.infer(replace(whole, history=own)))
    assert server.metric("cdp_empty_histories_total") == 2


def test_a_strict_server_refuses_gaps_by_name(
    start_server: Callable[..., Server], predictor: Predictor, requests: list[Request]
) -> None:
    server = start_server(predictor, strict=True)
    features = {n: "x" if value is None else value for n, value in requests[0].features.items()}
    whole = replace(requests[0], features=features)
    probabilities(server.infer(whole))
    count = len(whole.candidates["item_id"])
    prices = {n: v for n, v in whole.candidates.items() if n != "log_price"}
    for spoiled, culprit in {
        "features.hour": replace(
            whole, features={n: v for n, v in features.items() if n != "hour"}
        ),
        "candidates.log_price": replace(whole, candidates=prices),
        "user": replace(whole, user=None),
        "candidates.item_id": replace(
            whole, candidates=dict(whole.candidates) | {"item_id": ["new"] * count}
        ),
    }.items():
        response = server.infer(culprit)
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"{spoiled}: ")


def load(artifact: Path, metrics: ServerMetrics, config: ServerConfig) -> None:
    asyncio.run(ServedModel(artifact, config, metrics).load())


def test_a_name_that_no_url_can_have_is_refused(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=r"name 'eu/web' has a '/', .* set model_name"):
        load(artifact, ServerMetrics(), ServerConfig(model_name="eu/web"))


def test_a_missing_store_is_said_at_the_start_and_a_strict_server_does_not_start(
    artifact: Path, tiny_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(artifact, ServerMetrics(), ServerConfig())
    assert NO_STORE in caplog.text
    with pytest.raises(ArtifactError, match=rf"{NO_STORE}.*strict"):
        load(artifact, ServerMetrics(), ServerConfig(strict=True))
    caplog.clear()
    metrics = ServerMetrics()
    load(artifact, metrics, ServerConfig(strict=True, history_store=tiny_dataset))
    assert NO_STORE not in caplog.text and b"cdp_history_store 1.0" in metrics.text()
