"""A score is a function of its request alone, and a request that makes no sense gets none."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request, RequestError

# Another batch, another order of sums.
CLOSE = 1e-6


def with_history(request: Request, behaviours: Behaviours) -> Request:
    return replace(request, history=behaviours)


def test_a_score_is_the_same_alone_in_a_batch_and_from_eight_threads(
    predictor: Predictor, requests: list[Request], behaviours: list[Behaviours]
) -> None:
    mixed = [
        with_history(request, own) if place % 2 else request
        for place, (request, own) in enumerate(zip(requests, behaviours, strict=True))
    ]
    alone = [predictor.score(request) for request in mixed]
    for together, one in zip(predictor.score_many(mixed), alone, strict=True):
        np.testing.assert_allclose(together, one, rtol=0, atol=CLOSE)
    with ThreadPoolExecutor(8) as pool:
        for threaded, one in zip(pool.map(predictor.score, mixed * 3), alone * 3, strict=True):
            np.testing.assert_array_equal(threaded, one)


def test_a_history_scores_alike_from_the_store_and_from_the_request_in_any_order(
    predictor: Predictor, requests: list[Request], behaviours: list[Behaviours]
) -> None:
    rng = np.random.default_rng(0)
    with_behaviours = 0
    for request, own in zip(requests, behaviours, strict=True):
        order = rng.permutation(len(own.item)).tolist()
        shuffled = Behaviours(
            item=[own.item[i] for i in order],
            timestamp_ms=[own.timestamp_ms[i] for i in order],
            category=[own.category[i] for i in order] if own.category else [],
            action=[own.action[i] for i in order] if own.action else [],
        )
        stored = predictor.score(request)
        inline = predictor.score(with_history(request, shuffled))
        np.testing.assert_allclose(inline, stored, rtol=0, atol=CLOSE)
        empty = with_history(request, Behaviours(item=[], timestamp_ms=[], category=[], action=[]))
        with_behaviours += not np.allclose(predictor.score(empty), stored, rtol=0, atol=1e-3)
    assert with_behaviours > len(requests) / 2, "histories should matter"


def test_candidates_score_alike_in_any_order(predictor: Predictor, requests: list[Request]) -> None:
    request = requests[0]
    flipped = replace(request, candidates={k: [*v][::-1] for k, v in request.candidates.items()})
    np.testing.assert_allclose(
        predictor.score(flipped)[::-1], predictor.score(request), rtol=0, atol=CLOSE
    )


def test_cold_starts_have_defined_scores(predictor: Predictor, requests: list[Request]) -> None:
    request = requests[0]
    nothing_known = Request(
        user=None,
        timestamp_ms=request.timestamp_ms,
        candidates={"item_id": [None, "never seen", "item_0"], "category_id": [None, "new", None]},
    )
    unknown = replace(
        request,
        user="never seen",
        features=dict(request.features) | {"query_id": "never seen", "query_tokens": ["new"]},
    )
    for cold in (nothing_known, unknown, replace(unknown, history=None, features={})):
        scores = predictor.score(cold)
        assert np.isfinite(scores).all() and ((scores > 0) & (scores < 1)).all()


def test_a_missing_number_is_its_mean(predictor: Predictor, requests: list[Request]) -> None:
    mean = predictor.metadata.features["log_price"].mean
    length = len(requests[0].candidates["item_id"])
    scores = [
        predictor.score(
            replace(requests[0], candidates=dict(requests[0].candidates) | {"log_price": prices})
        )
        for prices in ([None] * length, [mean] * length, [mean + 1.0] * length)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("number", [1e3, -1e5, 1e10, -1e20, 1e38, 10**38])
def test_every_number_that_is_accepted_has_a_probability(
    predictor: Predictor, requests: list[Request], number: float
) -> None:
    prices = [number] * len(requests[0].candidates["item_id"])
    candidates = dict(requests[0].candidates) | {"log_price": prices}
    assert np.isfinite(predictor.score(replace(requests[0], candidates=candidates))).all()


def test_an_item_that_training_never_saw_still_meets_itself_in_the_history(
    predictor: Predictor, requests: list[Request]
) -> None:
    request = requests[0]
    candidates = {"item_id": ["new one", "new two"], "category_id": ["category_0"] * 2}
    asked = replace(request, candidates=candidates)

    def scores(*items: str) -> np.ndarray:
        count = len(items)
        history = Behaviours(
            item=items,
            timestamp_ms=[request.timestamp_ms - 1000] * count,
            category=["category_0"] * count,
        )
        return predictor.score(replace(asked, history=history))

    touched, others = scores("new one"), scores("new three")
    assert abs(touched[0] - others[0]) > 1e-4
    assert scores("new one", "new two")[0] != touched[0]


def test_integers_and_booleans_are_the_ids_that_the_log_writes_as_text(
    predictor: Predictor, requests: list[Request]
) -> None:
    positions = [int(str(p)) for p in requests[0].candidates["position"]]
    same = replace(requests[0], candidates=dict(requests[0].candidates) | {"position": positions})
    np.testing.assert_array_equal(predictor.score(same), predictor.score(requests[0]))


def candidates(**changed: Any) -> Callable[[Request], Request]:
    return lambda request: replace(request, candidates=dict(request.candidates) | changed)


def features(**changed: Any) -> Callable[[Request], Request]:
    return lambda request: replace(request, features=dict(request.features) | changed)


def history(**changed: Any) -> Callable[[Request], Request]:
    def change(request: Request) -> Request:
        one = Behaviours(
            item=["item_0"], timestamp_ms=[request.timestamp_ms - 1], category=["category_0"]
        )
        return replace(request, history=replace(one, **changed))

    return change


def field(**changed: Any) -> Callable[[Request], Request]:
    return lambda request: replace(request, **changed)


BAD = {
    "unknown feature": (features(colour="red"), "features.colour"),
    "candidate feature of the request": (features(position=1), "features.position"),
    "request feature of candidates": (candidates(hour=["1"] * 8), "candidates.hour"),
    "user as a feature": (features(user_id="u"), "features.user_id"),
    "features are no mapping": (field(features=["hour"]), "features"),
    "no items": (field(candidates={"category_id": []}), "candidates.item_id"),
    "no categories": (field(candidates={"item_id": ["a"]}), "candidates.category_id"),
    "empty list": (candidates(item_id=[], category_id=[]), "candidates.item_id"),
    "too many": (candidates(item_id=["a"] * 51), "candidates.item_id"),
    "lists of different lengths": (candidates(category_id=["a"]), "candidates.category_id"),
    "a text for a list": (candidates(item_id="abcdefgh"), "candidates.item_id"),
    "a text for a bag": (features(query_tokens="token"), "features.query_tokens"),
    "a number for an id": (candidates(item_id=[1.5] * 8), "candidates.item_id"),
    "a text for a number": (candidates(log_price=["1"] * 8), "candidates.log_price"),
    "NaN": (candidates(log_price=[math.nan] * 8), "candidates.log_price"),
    "infinite": (candidates(log_price=[math.inf] * 8), "candidates.log_price"),
    "huge number": (candidates(log_price=[10**400] * 8), "candidates.log_price"),
    "negative id": (features(query_id=-1), "features.query_id"),
    "huge id": (features(query_id=2**70), "features.query_id"),
    "long id": (features(query_id="x" * 2000), "features.query_id"),
    "user of the wrong type": (field(user=["u"]), "user"),
    "moment of the wrong type": (field(timestamp_ms="now"), "timestamp_ms"),
    "moment in seconds": (field(timestamp_ms=1_737_590_473), "timestamp_ms"),
    "moment in microseconds": (field(timestamp_ms=10**30), "timestamp_ms"),
    "request id of the wrong type": (field(request_id=1.5), "request_id"),
    "huge request id": (field(request_id=2**64), "request_id"),
    "younger history": (history(timestamp_ms=[1_999_999_999_999]), "history.timestamp_ms"),
    "history in seconds": (history(timestamp_ms=[1_737_500_000]), "history.timestamp_ms"),
    "history in floats": (history(timestamp_ms=[1.0]), "history.timestamp_ms"),
    "history of two lengths": (history(item=["a", "b"]), "history.item"),
    "history without categories": (history(category=None), "history.category"),
    "history too long": (history(timestamp_ms=[1] * 20_000), "history.timestamp_ms"),
    "bad id in the history": (history(action=[2.5]), "history.action"),
}


@pytest.mark.parametrize(("change", "culprit"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_with_the_name_of_its_field(
    predictor: Predictor,
    requests: list[Request],
    change: Callable[[Request], Request],
    culprit: str,
) -> None:
    with pytest.raises(RequestError) as caught:
        predictor.score_many([requests[1], change(requests[0])])
    assert caught.value.field == culprit
    assert str(caught.value).startswith(f"{culprit}: ")
    with pytest.raises(RequestError):
        predictor.check(change(requests[0]))


def test_a_behaviour_at_the_very_moment_of_the_request_is_too_young(
    predictor: Predictor, requests: list[Request]
) -> None:
    moment = requests[0].timestamp_ms
    predictor.check(history(timestamp_ms=[moment - 1])(requests[0]))
    with pytest.raises(RequestError, match="not before the request"):
        predictor.check(history(timestamp_ms=[moment])(requests[0]))


def test_a_request_may_be_older_than_the_training(
    predictor: Predictor, requests: list[Request]
) -> None:
    """A run of one day serves what comes late from the day before."""
    predictor.check(field(timestamp_ms=requests[0].timestamp_ms - 90 * 86_400_000)(requests[0]))


def test_metadata_names_inputs_and_limits(predictor: Predictor) -> None:
    metadata = predictor.metadata
    assert metadata.name == "synthetic-cdp"
    assert metadata.max_candidates == 50
    assert metadata.required_candidate_features == ("item_id", "category_id")
    assert metadata.history_columns == ("item", "timestamp_ms", "category", "action")
    assert metadata.has_history_store and metadata.features["hour"].role == "context"
