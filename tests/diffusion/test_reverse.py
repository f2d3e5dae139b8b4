"""DiffRec's and DDRM's diffusion agree with the published code, and with closed forms."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cdp_torchrec.diffusion.config import ConcatDenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.diffusion.reverse import ReverseProcess, elbo_weights, posterior_mean_steps
from cdp_torchrec.diffusion.sampler import denoise
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from tests.golden_wave import wave
from tests.paths import GOLDEN

SYSTEMS = ["diffrec", "ldiffrec", "ddrm"]


class Published:
    """Golden vector of a system, and our process with the same parameters and inputs."""

    def __init__(self, system: str) -> None:
        golden = json.loads((GOLDEN / f"{system.removeprefix('l')}.json").read_text())
        self.expected: dict[str, Any] = golden[system]
        settings = golden["settings"]
        self.process = ReverseProcess(
            NoiseScheduleConfig(
                num_train_timesteps=settings["steps"],
                beta_schedule="linear_var",
                beta_start=settings["noise_min"],
                beta_end=settings["noise_max"],
                noise_scale=settings["noise_scale"],
                first_beta=None if system == "ldiffrec" else 1e-5,
            ),
            ConcatDenoiserConfig(
                hidden_sizes=tuple(self.expected["hidden_sizes"]),
                activation="relu" if system == "ddrm" else "tanh",
            ),
            dim=settings["dim"],
            condition_dim=settings["dim"] if system == "ddrm" else 0,
        )
        with torch.no_grad():
            for number, parameter in enumerate(self.process.parameters()):
                parameter.copy_(wave(*parameter.shape, phase=number, scale=0.5))
        self.shape = (settings["rows"], settings["dim"])
        self.x_0, self.noise, condition = (
            wave(*self.shape, phase=phase, scale=1.0) for phase in (10, 11, 12)
        )
        self.condition = condition if system == "ddrm" else None
        self.timesteps = torch.tensor(settings["timesteps"]) + 1

    def check(self, name: str, values: Tensor) -> None:
        expected = torch.tensor(self.expected[name]).view_as(values)
        torch.testing.assert_close(values.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_coefficients_are_the_published_ones(system):
    published = Published(system)
    schedule, expected = published.process.schedule, published.expected["coefficients"]
    assert schedule.alphas_cumprod[1:].tolist() == pytest.approx(
        expected["alphas_cumprod"], rel=1e-6
    )
    steps = posterior_mean_steps(schedule)[::-1]
    assert [step.timestep for step in steps] == [1, 2, 3, 4, 5]
    assert [step.x_0 for step in steps] == pytest.approx(expected["posterior_mean_coef1"], rel=1e-6)
    assert [step.state for step in steps] == pytest.approx(
        expected["posterior_mean_coef2"], rel=1e-6
    )
    assert elbo_weights(schedule)[1:] == pytest.approx(expected["weights"], rel=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_network_gives_the_published_output(system):
    published = Published(system)
    output = published.process.denoiser(published.x_0, published.timesteps, published.condition)
    published.check("network", output)


@pytest.mark.parametrize("system", ["diffrec", "ldiffrec"])
def test_chain_from_the_clean_state_is_the_published_one(system):
    published = Published(system)
    published.check("chain", published.process.chain(published.x_0))


@pytest.mark.parametrize("system", SYSTEMS)
def test_chain_from_a_noised_state_is_the_published_one(system):
    published = Published(system)
    start = published.process.last_state(published.x_0, published.noise)
    published.check("chain_from_noise", published.process.chain(start, published.condition))


@pytest.mark.parametrize("system", SYSTEMS)
def test_loss_is_the_published_one(system):
    published = Published(system)
    predicted = published.process.one_step(
        published.x_0,
        noise=published.noise,
        timesteps=published.timesteps,
        condition=published.condition,
    )
    loss = (predicted - published.x_0).square().mean(dim=1)
    if system != "ddrm":  # DDRM does not weigh timesteps.
        loss = loss * torch.tensor(elbo_weights(published.process.schedule))[published.timesteps]
    published.check("loss", loss)


def test_posterior_mean_of_a_true_x_0_keeps_the_state_on_its_path():
    schedule = NoiseSchedule(NoiseScheduleConfig(num_train_timesteps=7), prediction_type="x0")
    x_0 = torch.randn(3, 4, dtype=torch.float64)
    steps = posterior_mean_steps(schedule)
    for step in steps:
        signal, next_signal = (
            schedule.scales(step.timestep)[0],
            schedule.scales(step.timestep - 1)[0],
        )
        torch.testing.assert_close(step.state * signal * x_0 + step.x_0 * x_0, next_signal * x_0)
    start = schedule.scales(7)[0] * x_0
    torch.testing.assert_close(denoise(start, steps=steps, predict_x_0=lambda x, i: x_0), x_0)


def test_the_first_timestep_weighs_one_where_the_snr_before_it_is_infinite():
    weights = elbo_weights(NoiseSchedule(NoiseScheduleConfig(), prediction_type="x0"))
    assert weights[:2] == [0.0, 1.0]
    assert len(weights) == 101
    assert all(math.isfinite(weight) and weight > 0 for weight in weights[1:])
