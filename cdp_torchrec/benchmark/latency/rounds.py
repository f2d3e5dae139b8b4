"""Latency of the dense part for one request, model against model in alternating rounds.

Inputs are tensors that are there: lookups, the history store and the encoding of requests are the
same for every model with the same history, and are not timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdp_torchrec.benchmark.latency.config import Form, LatencySettings
from cdp_torchrec.benchmark.latency.contestants import BASE, Contestant, Scorer, make_scorer
from cdp_torchrec.progress import ProgressBar, progress
from cdp_torchrec.timer import Timer, Times, alternate, device_timer, times

_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """One model in one form at one number of candidates."""

    name: str
    form: Form
    num_candidates: int
    times: Times
    added_ms: float
    """Over the base model in the same round, the median."""


def measure(
    contestants: Sequence[Contestant],
    latency: LatencySettings,
    device: torch.device,
    scratch: Path,
) -> list[Timing]:
    """Time of every contestant in every form at every number of candidates.

    Args:
        contestants: the base first.
        latency: what to measure.
        device: where to compute.
        scratch: directory for compiled programs.
    """
    scorers = {
        (c.name, form): make_scorer(c, form, scratch)
        for form in latency.forms
        for c in progress(contestants, f"make {form}", unit="models")
    }
    clock = time.perf_counter if latency.clock == "wall" else time.thread_time
    timer = device_timer(device, clock)
    timings: list[Timing] = []
    total = len(scorers) * len(latency.candidates)
    with (
        torch.inference_mode(),
        ProgressBar("measure", total=total, unit="models") as bar,
    ):
        for form in latency.forms:
            for size in latency.candidates:
                inputs = {c.name: c.requests.inputs(size) for c in contestants}
                own = {c.name: scorers[c.name, form] for c in contestants}
                found = time_rounds(own, inputs, timer, num_rounds=latency.num_rounds)
                timings += [
                    Timing(name, form, size, values, values.added_to(found[BASE]))
                    for name, values in found.items()
                ]
                bar.advance(len(contestants))
    return timings


def time_rounds(
    scorers: Mapping[str, Scorer],
    inputs: Mapping[str, Sequence[Mapping[str, Tensor]]],
    timer: Timer,
    *,
    num_rounds: int,
) -> dict[str, Times]:
    """Times of each model; a round asks all of them for the same request.

    Args:
        scorers: the models.
        inputs: of each model, the requests in the same order.
        timer: measures a call.
        num_rounds: rounds that count.
    """

    def contestant(name: str) -> Callable[[int], float]:
        requests = inputs[name]
        return lambda number: timer.ms(lambda: scorers[name](requests[number % len(requests)]))

    rounds = range(-_WARM_UP, num_rounds)
    return times(alternate({name: contestant(name) for name in scorers}, rounds, warm_up=_WARM_UP))
