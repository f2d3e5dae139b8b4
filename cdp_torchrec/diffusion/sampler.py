"""Deterministic samplers: from the start state to the denoised interest (paper section 3.6).

Both are linear in the state and the predicted clean latent, so a sampler is a short list of
coefficients, computed once in float64; `denoise` is the whole reverse process.
"""

# B impressions, D latent dim, T diffusion steps, K sampled steps

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class SamplingStep:
    """One step: x_next = state * x_t + x_0 * predicted + previous_x_0 * previously predicted."""

    timestep: int
    """Where the denoiser is called, 1..T."""
    state: float
    x_0: float
    previous_x_0: float


def trailing_timesteps(start_timestep: int, num_inference_steps: int) -> list[int]:
    """Evenly spaced timesteps that include the start, such as 100, 95, ..., 5.

    The chain starts at x_T, so the first call must be at T ("trailing" spacing).
    """
    return [
        round(start_timestep * remaining / num_inference_steps)
        for remaining in range(num_inference_steps, 0, -1)
    ]


def sampling_steps(
    schedule: NoiseSchedule,
    *,
    sampler: SamplerType,
    start_timestep: int,
    num_inference_steps: int,
) -> tuple[SamplingStep, ...]:
    """Coefficients of every step from start_timestep to the clean latent.

    Args:
        schedule: the forward process to reverse.
        sampler: "ddim" with eta = 0 (Song et al. 2021, eq. 12) or "dpmpp_2m", the second-order
            multistep DPM-Solver++ (Lu et al. 2022, algorithm 2; first and last step first order).
        start_timestep: noise level of the start state, 1..T.
        num_inference_steps: K, 0..start_timestep. Paper: 20.
    """
    if not 0 <= num_inference_steps <= start_timestep:
        raise ValueError(
            f"num_inference_steps = {num_inference_steps} must lie in 0..{start_timestep}, "
            "the timestep where sampling starts"
        )
    if num_inference_steps == 0:
        return ()
    grid = [*trailing_timesteps(start_timestep, num_inference_steps), 0]
    steps = []
    last_log_snr_gain = None
    for timestep, next_timestep in pairwise(grid):
        signal, sigma = schedule.scales(timestep)
        next_signal, next_sigma = schedule.scales(next_timestep)
        state = next_sigma / sigma
        x_0 = next_signal - signal * state
        previous_x_0 = 0.0
        if sampler == "dpmpp_2m" and next_timestep > 0:
            log_snr_gain = math.log(next_signal / next_sigma) - math.log(signal / sigma)
            if last_log_snr_gain is not None:
                extrapolation = log_snr_gain / (2.0 * last_log_snr_gain)
                previous_x_0 = -extrapolation * x_0
                x_0 += extrapolation * x_0
            last_log_snr_gain = log_snr_gain
        steps.append(SamplingStep(timestep, state, x_0, previous_x_0))
    return tuple(steps)


def denoise(
    x_start: Tensor,
    *,
    steps: tuple[SamplingStep, ...],
    predict_x_0: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The whole reverse process; without steps, the start state itself.

    Args:
        x_start: state at the first step's timestep, [B, D].
        steps: from `sampling_steps`.
        predict_x_0: clean latent predicted from (state, index of the step), [B, D].
    """
    x_t = x_start
    previous: Tensor | None = None
    for index, step in enumerate(steps):
        x_0 = predict_x_0(x_t, index)
        # The last step ends at timestep 0, where the state is the prediction.
        x_t = x_0 if step.state == 0.0 else step.state * x_t + step.x_0 * x_0
        if step.previous_x_0 != 0.0 and previous is not None:
            x_t = x_t + step.previous_x_0 * previous
        previous = x_0
    return x_t
