"""Latency of the dense part for one request, model against model in alternating rounds.

Inputs are tensors that are there: lookups, the history store and the encoding of requests are the
same for every model with the same history, and are not timed.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cdp_torchrec.benchmark.latency.config import Form, LatencyConfig
from cdp_torchrec.benchmark.latency.requests import LatencyRequests
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import CdpConfig, CdpInterest, NoneConfig, PooledConfig
from cdp_torchrec.interest.config.gated import GatedHistoryConfig
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving.ranker import Ranker, RankerProgram, export_ranker

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
    times_ms: NDArray[np.float64]
    """Of each round."""
    added_ms: NDArray[np.float64]
    """Over the base model in the same round."""

    def percentile_ms(self, percent: float) -> float:
        """Of the rounds."""
        return float(np.percentile(self.times_ms, percent))

    @property
    def added_median_ms(self) -> float:
        """Median of what is added in each round."""
        return float(np.median(self.added_ms))


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
                times = _rounds(own, inputs, latency, device)
                timings += [
                    Timing(name, form, size, values, values - times[BASE])
                    for name, values in times.items()
                ]
                bar.update(len(contestants))
    return timings


def _rounds(
    scorers: Mapping[str, Scorer],
    inputs: Mapping[str, Sequence[Mapping[str, Tensor]]],
    latency: LatencyConfig,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each model in each round; a round asks all of them for the same request."""
    clock = time.perf_counter if latency.clock == "wall" else time.thread_time
    times = {name: np.zeros(latency.num_rounds) for name in scorers}
    for name, scorer in scorers.items():
        for request in inputs[name][:_WARM_UP]:
            scorer(request)
    for number in range(latency.num_rounds):
        for name, scorer in scorers.items():
            request = inputs[name][number % len(inputs[name])]
            _finish(device)
            started = clock()
            scorer(request)
            _finish(device)
            times[name][number] = 1e3 * (clock() - started)
    return times


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


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
