"""Requests that arrive together are scored together, and none pays for another."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.server.batching import Batcher
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.errors import QueueFullError, StoppingError
from cdp_torchrec.serving.server.fair_queue import Client
from cdp_torchrec.serving.server.metrics import ServerMetrics

TIMEOUT_S = 10.0


class FakePredictor(Predictor):
    """The score of a candidate is its number; batches wait for a gate and are remembered."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.is_busy = threading.Event()

    def score_encoded(self, encoded: Sequence[EncodedRequest]) -> list[np.ndarray]:
        self.is_busy.set()
        assert self.gate.wait(TIMEOUT_S)
        self.batches.append([request.request_id for request in encoded])
        if any(request.user == CULPRIT for request in encoded):
            raise FloatingPointError("not finite")
        return [request.candidate["item_id"] for request in encoded]


CULPRIT = 7


def request(number: int, *, candidates: int = 1, user: int = 1) -> EncodedRequest:
    return EncodedRequest(
        request_id=number,
        user=user,
        timestamp=0,
        request={},
        bags={},
        candidate={"item_id": np.full(candidates, number)},
        history=None,
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Batcher]]:
    with ExitStack() as stack:

        def start_batcher(**settings: Any) -> Batcher:
            batcher = Batcher(ServerConfig(**settings), ServerMetrics())
            stack.callback(batcher.close)
            return batcher

        yield start_batcher


def busy_with_one(batcher: Batcher, predictor: FakePredictor) -> None:
    """The only worker scores request 0 until the gate opens."""
    batcher.submit(predictor, request(0))
    assert predictor.is_busy.wait(TIMEOUT_S)


def test_requests_that_wait_are_scored_together_up_to_the_limit(
    start: Callable[..., Batcher],
) -> None:
    batcher, predictor = start(max_batch_candidates=5), FakePredictor()
    busy_with_one(batcher, predictor)
    sizes = {1: 2, 2: 2, 3: 2, 4: 9, 5: 1}
    scored = [batcher.submit(predictor, request(n, candidates=c)) for n, c in sizes.items()]
    predictor.gate.set()
    for (number, count), found in zip(sizes.items(), scored, strict=True):
        assert found.result(TIMEOUT_S).tolist() == [number] * count
    assert predictor.batches == [[0], [1, 2], [3], [4], [5]]


def test_the_first_request_waits_for_company(start: Callable[..., Batcher]) -> None:
    batcher = start(max_wait_ms=5_000.0, timeout_s=9.0, max_batch_candidates=3)
    predictor = FakePredictor()
    predictor.gate.set()
    scored = [batcher.submit(predictor, request(number)) for number in range(3)]
    for found in scored:
        found.result(TIMEOUT_S)
    assert predictor.batches == [[0, 1, 2]]


def test_a_request_without_company_is_scored_after_the_wait(start: Callable[..., Batcher]) -> None:
    batcher, predictor = start(max_wait_ms=1.0), FakePredictor()
    predictor.gate.set()
    assert batcher.submit(predictor, request(7)).result(TIMEOUT_S).tolist() == [7]


def test_only_the_culprit_fails_when_a_batch_fails(start: Callable[..., Batcher]) -> None:
    batcher, predictor = start(), FakePredictor()
    busy_with_one(batcher, predictor)
    users = [1, CULPRIT, 2]
    scored = [
        batcher.submit(predictor, request(number, user=user))
        for number, user in enumerate(users, start=1)
    ]
    predictor.gate.set()
    assert scored[0].result(TIMEOUT_S).tolist() == [1]
    assert scored[2].result(TIMEOUT_S).tolist() == [3]
    assert isinstance(scored[1].exception(TIMEOUT_S), FloatingPointError)
    assert predictor.batches == [[0], [1, 2, 3], [1], [2], [3]]


def test_a_full_queue_refuses_and_recovers(start: Callable[..., Batcher]) -> None:
    batcher, predictor = start(queue_length=2), FakePredictor()
    busy_with_one(batcher, predictor)
    waiting = [batcher.submit(predictor, request(number)) for number in (1, 2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        batcher.submit(predictor, request(3))
    predictor.gate.set()
    assert [found.result(TIMEOUT_S).tolist() for found in waiting] == [[1], [2]]
    assert batcher.submit(predictor, request(4)).result(TIMEOUT_S).tolist() == [4]


def test_what_nobody_waits_for_is_not_scored(start: Callable[..., Batcher]) -> None:
    batcher, predictor = start(), FakePredictor()
    busy_with_one(batcher, predictor)
    given_up, kept = (batcher.submit(predictor, request(number)) for number in (1, 2))
    assert given_up.cancel()
    predictor.gate.set()
    assert kept.result(TIMEOUT_S).tolist() == [2]
    assert predictor.batches == [[0], [2]]


def test_a_batch_has_one_predictor(start: Callable[..., Batcher]) -> None:
    batcher, old, new = start(), FakePredictor(), FakePredictor()
    busy_with_one(batcher, old)
    predictors = [old, old, new, new, old]
    scored = [batcher.submit(p, request(n)) for n, p in enumerate(predictors, start=1)]
    new.gate.set()
    old.gate.set()
    for found in scored:
        found.result(TIMEOUT_S)
    assert old.batches == [[0], [1, 2], [5]]
    assert new.batches == [[3, 4]]


def test_a_short_request_goes_before_long_ones_of_others_that_came_earlier(
    start: Callable[..., Batcher],
) -> None:
    batcher, predictor = start(max_batch_candidates=10), FakePredictor()
    busy_with_one(batcher, predictor)
    greedy, modest = Client("a", 1), Client("b", 1)
    scored = [
        batcher.submit(predictor, request(n, candidates=10), client=greedy) for n in range(1, 4)
    ]
    scored.append(batcher.submit(predictor, request(9, candidates=2), client=modest))
    predictor.gate.set()
    for found in scored:
        found.result(TIMEOUT_S)
    assert predictor.batches == [[0], [9], [1], [2], [3]]


def test_closing_scores_what_is_queued_and_accepts_no_more() -> None:
    batcher, predictor = Batcher(ServerConfig(), ServerMetrics()), FakePredictor()
    busy_with_one(batcher, predictor)
    queued = [batcher.submit(predictor, request(number)) for number in (1, 2)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    deadline = time.monotonic() + TIMEOUT_S
    with pytest.raises(StoppingError):
        while time.monotonic() < deadline:
            batcher.submit(predictor, request(3)).cancel()
    predictor.gate.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    assert [found.result(0).tolist() for found in queued] == [[1], [2]]


def test_several_workers_score_at_the_same_time(start: Callable[..., Batcher]) -> None:
    batcher, first, second = start(num_workers=2), FakePredictor(), FakePredictor()
    busy_with_one(batcher, first)
    second.gate.set()
    assert batcher.submit(second, request(1)).result(TIMEOUT_S).tolist() == [1]
    first.gate.set()
