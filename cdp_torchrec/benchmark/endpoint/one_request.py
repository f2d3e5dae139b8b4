"""What a request costs without a server: processor time of each step of a predictor."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.timer import Timer

_ROUNDS = 20


@dataclass(frozen=True)
class RequestCost:
    """Milliseconds of the calling thread's processor time, median of rounds over all requests."""

    encode: float
    """Checks, and codes of the ids."""
    inputs: float
    """Histories, embeddings, and all else that the ranker reads."""
    rank: float
    """The dense part."""


def measure_requests(predictor: Predictor, requests: Sequence[Request]) -> RequestCost:
    """Score each request alone, some rounds of all; every step waits for the one before it.

    Args:
        predictor: on a CPU, with one thread.
        requests: what is scored.
    """
    timer = Timer(clock=time.thread_time)
    rounds = []
    for _ in range(1 + _ROUNDS):
        spent = np.zeros(3)
        for request in requests:
            encoded, encode = timer.measure(partial(predictor.encode, request))
            inputs, build = timer.measure(partial(predictor.inputs, [encoded]))
            spent += (encode, build, timer.ms(partial(predictor.rank, inputs)))
        rounds.append(spent / len(requests))
    return RequestCost(*np.median(rounds[1:], axis=0).tolist())
