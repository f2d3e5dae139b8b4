"""Models whose latency is compared: the same tower with different interest modules in front."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdp_torchrec.benchmark.latency.config import Form, LatencySettings
from cdp_torchrec.benchmark.latency.requests import LatencyRequests
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import CdpConfig, CdpInterest, NoneConfig, PooledConfig
from cdp_torchrec.interest.config.gated import GatedHistoryConfig
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving.ranker import Ranker
from cdp_torchrec.serving.ranker_export import RankerProgram, export_ranker

BASE = "none"
"""The model that added milliseconds are counted from: the same tower without interest."""

Scorer = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Contestant:
    """A model whose latency is measured."""

    name: str
    arch: RankingArch
    requests: LatencyRequests
    num_inference_steps: int = 0
    """Denoiser calls; 0 for models without a denoiser."""


def cdp_name(num_inference_steps: int) -> str:
    """Name of CDP at a number of steps."""
    return f"cdp {num_inference_steps} step{'s' if num_inference_steps > 1 else ''}"


def make_contestants(
    config: ExperimentConfig, latency: LatencySettings, arch: RankingArch, device: torch.device
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


def make_scorer(contestant: Contestant, form: Form, scratch: Path) -> Scorer:
    """Click probabilities of a request's inputs.

    Args:
        contestant: the model.
        form: how it is run.
        scratch: directory for compiled programs.
    """
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
