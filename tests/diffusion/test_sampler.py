"""Samplers undo the forward process, with the accuracy of their order."""

import math
from typing import get_args

import pytest
import torch

from cdp_torchrec.diffusion.config import NoiseScheduleConfig, PredictionType, SamplerType
from cdp_torchrec.diffusion.sampler import denoise, sampling_steps, trailing_timesteps
from cdp_torchrec.diffusion.schedule import NoiseSchedule

SAMPLERS: tuple[SamplerType, ...] = get_args(SamplerType)


def make_schedule(prediction_type: PredictionType = "epsilon") -> NoiseSchedule:
    return NoiseSchedule(NoiseScheduleConfig(), prediction_type=prediction_type)


def test_twenty_steps_visit_100_95_to_5():
    assert trailing_timesteps(100, 20) == list(range(100, 0, -5))


def test_every_number_of_steps_starts_at_the_start_and_never_repeats_a_timestep():
    for start in (7, 100):
        for num_steps in range(1, start + 1):
            grid = trailing_timesteps(start, num_steps)
            assert grid[0] == start
            assert len(grid) == num_steps
            assert grid[-1] >= 1
            assert sorted(set(grid), reverse=True) == grid


@pytest.mark.parametrize("prediction_type", get_args(PredictionType))
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 100])
def test_an_oracle_recovers_the_clean_latent(
    num_inference_steps: int, sampler: SamplerType, prediction_type: PredictionType
):
    schedule = make_schedule(prediction_type)
    steps = sampling_steps(
        schedule, sampler=sampler, start_timestep=100, num_inference_steps=num_inference_steps
    )
    x_0, noise = torch.randn(2, 16, 8, dtype=torch.float64).unbind()
    signal, sigma = schedule.scales(100)

    def oracle(x_t: torch.Tensor, index: int) -> torch.Tensor:
        timestep = steps[index].timestep
        signal, sigma = schedule.scales(timestep)
        true_noise = (x_t - signal * x_0) / sigma
        prediction = {
            "epsilon": true_noise,
            "x0": x_0,
            "v": signal * true_noise - sigma * x_0,
        }[prediction_type]
        return schedule.x_0_from(prediction, x_t, timestep)

    denoised = denoise(signal * x_0 + sigma * noise, steps=steps, predict_x_0=oracle)
    torch.testing.assert_close(denoised, x_0, rtol=0.0, atol=1e-12)


def gaussian_error(sampler: SamplerType, num_inference_steps: int, std: float) -> float:
    """Error for latents N(0, std^2), whose best denoiser and exact reverse process are known."""
    schedule = make_schedule()
    steps = sampling_steps(
        schedule, sampler=sampler, start_timestep=100, num_inference_steps=num_inference_steps
    )

    def best_denoiser(x_t: torch.Tensor, index: int) -> torch.Tensor:
        signal, sigma = schedule.scales(steps[index].timestep)
        return signal * std**2 / (signal**2 * std**2 + sigma**2) * x_t

    signal, sigma = schedule.scales(100)
    x_start = torch.ones(1, 1, dtype=torch.float64)
    exact = std / math.sqrt(signal**2 * std**2 + sigma**2)
    denoised = denoise(x_start, steps=steps, predict_x_0=best_denoiser)
    return abs(denoised.item() / exact - 1.0)


def test_more_steps_come_closer_to_the_exact_reverse_process():
    for sampler in SAMPLERS:
        errors = [gaussian_error(sampler, steps, std=2.0) for steps in (4, 10, 20, 50)]
        assert errors == sorted(errors, reverse=True)


def test_the_second_order_sampler_needs_fewer_steps():
    assert gaussian_error("dpmpp_2m", 10, std=2.0) < gaussian_error("ddim", 20, std=2.0)


@pytest.mark.parametrize(("std", "correlation"), [(1.0, 0.686), (0.3, 0.271), (0.1, 0.093)])
def test_a_noised_start_forgets_a_latent_of_small_scale(std: float, correlation: float):
    # Whatever linear map the best denoiser is, z* is as correlated with z_0 as the start state.
    x_0 = std * torch.randn(200_000, dtype=torch.float64)
    signal, sigma = make_schedule().scales(100)
    x_start = signal * x_0 + sigma * torch.randn(200_000, dtype=torch.float64)
    measured = torch.corrcoef(torch.stack([x_0, x_start]))[0, 1].item()
    assert measured == pytest.approx(correlation, abs=0.01)


def test_no_steps_leave_the_start_state_as_it_is():
    steps = sampling_steps(
        make_schedule(), sampler="ddim", start_timestep=100, num_inference_steps=0
    )
    x_start = torch.randn(3, 4)
    assert torch.equal(denoise(x_start, steps=steps, predict_x_0=lambda x, _: x + 1), x_start)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match=r"num_inference_steps = 101 must lie in 0\.\.100"):
        sampling_steps(make_schedule(), sampler="ddim", start_timestep=100, num_inference_steps=101)
