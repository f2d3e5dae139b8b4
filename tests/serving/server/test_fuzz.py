"""Any body and any change of a good one is scored or refused by name, nothing else."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request, RequestError
from cdp_torchrec.serving.server.body import BodyTooLargeError, read_inference
from cdp_torchrec.serving.server.protocol import input_specs, to_infer_request, to_request
from tests.fuzz import FUZZ, SCALARS, changed, nested

_MOST_VALUES = 10_000
_VALUES = SCALARS | st.sampled_from([1e308, -1e308, "9" * 5000, 10**400, "\ud800", "\x00", -1])


def score(predictor: Predictor, body: bytes, json_length: int | None = None) -> None:
    """As the server does."""
    try:
        asked = read_inference(body, json_length=json_length, most_values=_MOST_VALUES)
        request = to_request(asked, input_specs(predictor.metadata))
        probabilities = predictor.score(request)
    except (RequestError, BodyTooLargeError) as error:
        assert str(error).strip()
        return
    assert np.isfinite(probabilities).all()


@settings(FUZZ, max_examples=150)
@given(st.data())
def test_any_change_of_a_good_request(
    predictor: Predictor, requests: list[Request], data: st.DataObject
) -> None:
    good = to_infer_request(data.draw(st.sampled_from(requests[:5])), predictor.metadata)
    spoiled: Any = good
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled = data.draw(_changes(spoiled))
    score(predictor, json.dumps(spoiled).encode())


@FUZZ
@given(st.binary(), st.none() | st.integers())
def test_any_bytes(predictor: Predictor, body: bytes, json_length: int | None) -> None:
    score(predictor, body, json_length)


@settings(FUZZ, max_examples=100)
@given(st.data())
def test_any_bytes_behind_a_good_request(
    predictor: Predictor, requests: list[Request], data: st.DataObject
) -> None:
    good = to_infer_request(requests[0], predictor.metadata)
    for tensor in good["inputs"]:
        if data.draw(st.booleans()):
            del tensor["data"]
            tensor["parameters"] = {"binary_data_size": data.draw(st.integers(-1, 40))}
    text = json.dumps(good).encode()
    behind = data.draw(st.binary(max_size=80))
    score(predictor, text + behind, data.draw(st.sampled_from([len(text), 0, len(text) + 99])))


@st.composite
def _changes(draw: st.DrawFn, tree: Any) -> Any:
    return changed(draw, tree, nested(_VALUES))
