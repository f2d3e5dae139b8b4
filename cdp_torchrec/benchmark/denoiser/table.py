"""Times of the reverse process in each form, and what share of them the roofline explains."""

# B candidates, D latent dim, K denoiser calls

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cdp_torchrec.benchmark.denoiser.config import DenoiserSettings
from cdp_torchrec.benchmark.latency.denoiser_cost import denoiser_cost, product_rate
from cdp_torchrec.diffusion.config import NoiseScheduleConfig
from cdp_torchrec.diffusion.denoiser import Denoiser
from cdp_torchrec.diffusion.fused import Chain, fits, linear_steps
from cdp_torchrec.diffusion.sampler import sampling_steps
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.progress import progress
from cdp_torchrec.text_table import markdown_table
from cdp_torchrec.timer import Timer, alternate, device_timer, times

_COPIED = {"cpu": 2**26, "cuda": 2**31}
"""Bytes of the copy that the bandwidth is taken of: many times what the caches hold."""
_TRIALS = 10
_WARM_UP = 5


@dataclass(frozen=True)
class Ceilings:
    """What the device can do at most, measured."""

    gflops: float
    """Of torch.mm as exact as float32, in 1e9 operations per second."""
    gb_per_s: float
    """Bytes read and written by a copy."""


@dataclass(frozen=True)
class Row:
    """One size of the chain."""

    candidates: int
    num_inference_steps: int
    floor_us: float
    """No form can be faster."""
    bound_by: str
    """What the floor is made of: operations or bytes."""
    us: dict[str, float]
    """Median of each form: eager, and on a GPU fused, where it fits, and both as CUDA graphs."""


@dataclass(frozen=True)
class DenoiserTable:
    """Everything that was measured."""

    device: str
    ceilings: Ceilings
    settings: DenoiserSettings
    rows: list[Row]


@torch.no_grad()
def measure_chains(settings: DenoiserSettings, device: torch.device) -> DenoiserTable:
    """Time the chain at every number of candidates and steps."""
    timer = device_timer(device)
    denoiser = Denoiser(
        settings.denoiser, dim=settings.dim, condition_dim=settings.dim, num_train_timesteps=100
    ).to(device)
    ceilings = Ceilings(product_rate(device, timer), _copy_rate(device, timer))
    sizes = [*product(settings.candidates, settings.num_inference_steps)]
    rows = [
        _measure(denoiser, size, steps, settings, ceilings, timer)
        for size, steps in progress(sizes, "benchmark", unit="sizes")
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return DenoiserTable(name, ceilings, settings, rows)


def _measure(
    denoiser: Denoiser,
    num_candidates: int,
    num_steps: int,
    settings: DenoiserSettings,
    ceilings: Ceilings,
    timer: Timer,
) -> Row:
    device = denoiser.sinusoids.device
    generator = torch.Generator().manual_seed(0)
    x, condition = torch.randn(2, num_candidates, settings.dim, generator=generator).to(device)
    chain = _chain(denoiser, condition, num_steps, settings)
    contestants: dict[str, Callable[[Tensor], Tensor]] = {"eager": chain.eager}
    if fits(denoiser, x):
        contestants["fused"] = chain.fused
    if x.is_cuda:
        contestants |= {f"{name} graph": _graphed(form, x) for name, form in contestants.items()}
    found = times(
        alternate(
            {name: _timed(form, x, timer) for name, form in contestants.items()},
            range(_WARM_UP + settings.rounds),
            warm_up=_WARM_UP,
        )
    )
    cost = denoiser_cost(denoiser, num_candidates=num_candidates, num_inference_steps=num_steps)
    by = {
        "operations": 1e-3 * cost.flops / ceilings.gflops,
        "bytes": 1e-3 * cost.bytes / ceilings.gb_per_s,
    }
    bound_by = max(by, key=by.__getitem__)
    us = {name: 1e3 * each.median for name, each in found.items()}
    return Row(num_candidates, num_steps, by[bound_by], bound_by, us)


def _chain(
    denoiser: Denoiser, condition: Tensor, num_steps: int, settings: DenoiserSettings
) -> Chain:
    schedule = NoiseSchedule(NoiseScheduleConfig(), prediction_type=settings.prediction_type)
    steps = sampling_steps(
        schedule,
        sampler="ddim",
        start_timestep=schedule.num_train_timesteps,
        num_inference_steps=num_steps,
    )
    grid = torch.tensor([step.timestep for step in steps], device=condition.device)
    return Chain(
        denoiser=denoiser,
        schedule=schedule.to(condition.device),
        steps=steps,
        factors=linear_steps(schedule, steps).to(condition.device),
        modulation=denoiser.modulation(condition),
        step_modulation=denoiser.time_modulation(grid),
    )


def _timed(form: Callable[[Tensor], Tensor], x: Tensor, timer: Timer) -> Callable[[int], float]:
    return lambda _: timer.ms(lambda: form(x))


def _graphed(form: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """The same launches, recorded once and replayed; on the input that they were recorded with."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate before, not while, they are recorded
            form(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        end = form(x)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return end

    return replay


def _copy_rate(device: torch.device, timer: Timer) -> float:
    copied = _COPIED[device.type]
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = 1e-3 * min(timer.ms(lambda: target.copy_(source)) for _ in range(_TRIALS))
    return 2 * copied / seconds / 1e9


def as_markdown(table: DenoiserTable) -> str:
    """The table, after one line on what it was measured with."""
    forms = list(table.rows[0].us)
    head = ["B", "K", "floor, us", "of", *(f"{form}, us" for form in forms), *forms]
    rows = [
        [
            *(
                f"{row.candidates:,}",
                str(row.num_inference_steps),
                f"{row.floor_us:,.1f}",
                row.bound_by,
            ),
            *(f"{row.us[form]:,.1f}" for form in forms),
            *(f"{100 * row.floor_us / row.us[form]:.2g} %" for form in forms),
        ]
        for row in table.rows
    ]
    layers = table.settings.denoiser
    return (
        f"Reverse process on {table.device} in float32, dimension {table.settings.dim}, hidden "
        f"width {layers.hidden_multiple * table.settings.dim}, {layers.num_hidden_layers} hidden "
        f"layers, condition_join {layers.condition_join}: medians of {table.settings.rounds} "
        "rounds; the last columns are the floor's share of them. Ceilings: "
        f"{table.ceilings.gflops:.0f} GFLOP/s, {table.ceilings.gb_per_s:.1f} GB/s.\n\n"
        + markdown_table(head, rows, left=(3,))
    )


def as_json(table: DenoiserTable) -> dict[str, Any]:
    """All numbers."""
    return {
        "device": table.device,
        "ceilings": asdict(table.ceilings),
        "settings": table.settings.model_dump(mode="json"),
        "rows": [asdict(row) for row in table.rows],
    }
