"""Latency of the dense part for one request, model against model in alternating rounds.

Inputs are tensors that are there: lookups, the history store and the encoding of requests are the
same for every model with the same history, and are not timed.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cdp_torchrec.benchmark.latency.config import Form, LatencyConfig
from cdp_torchrec.benchmark.latency.requests import LatencyRequests
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import CdpConfig, CdpInterest, NoneConfig, PooledConfig
from cdp_torchrec.interest.config.gated import GatedHistoryConfig
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving.ranker import Ranker, RankerProgram, export_ranker
from cdp_torchrec.timer import Timer, Times, alternate, device_timer, times

BASE = "none"
"""The model that added milliseconds are counted from: the same tower without interest."""


_WARM_UP = 3

Scorer = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A model whose latency is measured."""

    name: str
    arch: RankingArch
    requests: LatencyRequests
    num_inference_steps: int = 0
    """Denoiser calls; 0 for models without a denoiser."""


@dataclass(frozen=True)
class Timing:
    """One model in one form at one number of candidates."""

    name: str
    form: Form
    num_candidates: int
    times: Times
    added_ms: float
    """Over the base model in the same round, the median."""


def cdp_name(num_inference_steps: int) -> str:
    """Name of CDP at a number of steps."""
    return f"cdp {num_inference_steps} step{'s' if num_inference_steps > 1 else ''}"


def make_contestants(
    config: ExperimentConfig, latency: LatencyConfig, arch: RankingArch, device: torch.device
) -> list[Contestant]:
    """No interest, pooled history, and CDP at each number of steps, behind the same tower.

    Args:
        config: of the CDP run.
        latency: what to measure.
        arch: its trained dense part.
        device: where to compute.
    """
    assert isinstance(config.model.interest, CdpConfig)
    shared = {
        name: getattr(config.model.interest, name) for name in GatedHistoryConfig.model_fields
    }
    untrained = {
        BASE: NoneConfig(kind="none"),
        "pooled": PooledConfig(kind="pooled", **shared),
    }
    contestants = []
    for name, interest in untrained.items():
        model = config.model.model_copy(update={"interest": interest})
        own = config.model_copy(update={"model": model})
        requests = LatencyRequests(own, latency.num_requests, device)
        # The weights decide nothing about the time.
        contestants.append(Contestant(name, RankingArch(requests.layout, model), requests))
    requests = LatencyRequests(config, latency.num_requests, device)
    for steps in latency.num_inference_steps:
        of_steps = copy.deepcopy(arch)
        assert isinstance(of_steps.interest, CdpInterest)
        of_steps.interest.set_sampling(sampler=latency.samplers[0], num_inference_steps=steps)
        contestants.append(Contestant(cdp_name(steps), of_steps, requests, steps))
    for contestant in contestants:
        contestant.arch.to(device).eval()
    return contestants


def measure(
    contestants: Sequence[Contestant],
    latency: LatencyConfig,
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
        (c.name, form): _scorer(c, form, scratch)
        for form in latency.forms
        for c in tqdm(contestants, f"make {form}", unit="model", disable=None, leave=False)
    }
    clock = time.perf_counter if latency.clock == "wall" else time.thread_time
    timer = device_timer(device, clock)
    timings: list[Timing] = []
    total = len(scorers) * len(latency.candidates)
    with (
        torch.inference_mode(),
        tqdm(total=total, desc="measure", unit="model", disable=None, leave=False) as bar,
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
                bar.update(len(contestants))
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


def _scorer(contestant: Contestant, form: Form, scratch: Path) -> Scorer:
    example = contestant.requests.inputs(contestant.requests.example_size)[0]
    program = RankerProgram(contestant.arch, list(example))
    match form:
        case "eager":
            return lambda inputs: program(*inputs.values())
        case "compiled":
            on_gpu = next(iter(example.values())).is_cuda
            compiled = torch.compile(
                program, dynamic=True, mode="reduce-overhead" if on_gpu else "default"
            )
            return lambda inputs: compiled(*inputs.values())
        case "exported":
            package = scratch / f"{contestant.name.replace(' ', '-')}.pt2"
            export_ranker(
                contestant.arch,
                contestant.requests.layout,
                example,
                package,
                max_history_length=contestant.requests.max_history_length,
            )
            return Ranker(package, list(example), num_runners=1)
