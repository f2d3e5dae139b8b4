"""The denoiser is steered by condition and time; what is computed once equals what is not."""

from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional

from cdp_torchrec.diffusion.config import DenoiserConfig
from cdp_torchrec.diffusion.denoiser import ConditionedMlp, Denoiser
from tests.gradients import idle_parameters

Join = Literal["add", "film", "adaln_zero"]
JOINS: tuple[Join, ...] = ("add", "film", "adaln_zero")


def make_denoiser(join: Join, condition_dim: int = 6) -> Denoiser:
    """A denoiser with random parameters, also where they start at zero."""
    torch.manual_seed(0)
    denoiser = Denoiser(
        DenoiserConfig(condition_join=join),
        dim=6,
        condition_dim=condition_dim,
        num_train_timesteps=100,
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("join", JOINS)
def test_condition_and_time_both_matter(join: Join):
    denoiser = make_denoiser(join)
    x_t, condition, other = torch.randn(3, 5, 6).unbind()
    early, late = denoiser.time_modulation(torch.tensor([5, 100])).unbind()
    output = denoiser(x_t, denoiser.modulation(condition) + early)
    assert not torch.allclose(output, denoiser(x_t, denoiser.modulation(other) + early))
    assert not torch.allclose(output, denoiser(x_t, denoiser.modulation(condition) + late))


@pytest.mark.parametrize("join", JOINS)
def test_one_timestep_for_all_equals_the_same_timestep_per_impression(join: Join):
    denoiser = make_denoiser(join)
    x_t, modulation = torch.randn(5, 6), denoiser.modulation(torch.randn(5, 6))
    for_all = denoiser(x_t, modulation + denoiser.time_modulation(torch.tensor([42]))[0])
    per_impression = denoiser(x_t, modulation + denoiser.time_modulation(torch.full((5,), 42)))
    torch.testing.assert_close(for_all, per_impression)


@pytest.mark.parametrize("join", JOINS)
def test_a_denoiser_without_condition_works_and_has_no_idle_parameters(join: Join):
    denoiser = make_denoiser(join, condition_dim=0).double()
    modulation = denoiser.modulation(None) + denoiser.time_modulation(torch.arange(1, 6))
    output = denoiser(torch.randn(5, 6).double(), modulation)
    assert idle_parameters(denoiser, output.square().sum()) == []


def test_add_is_the_mlp_of_state_plus_condition_plus_time():
    network = ConditionedMlp(DenoiserConfig(condition_join="add"), dim=6, condition_dim=6)
    assert network.condition_projection is not None
    x, condition = torch.randn(2, 5, 6).unbind()
    joined = nn.Linear(12, 24)
    with torch.no_grad():
        joined.weight.copy_(
            torch.cat([network.first.weight, network.condition_projection.weight], 1)
        )
        joined.bias.copy_(network.modulation_bias)
    hidden = functional.relu(joined(torch.cat([x, condition], dim=1)))
    expected = network.last(functional.relu(network.middle[0](hidden)))
    torch.testing.assert_close(network(x, network.modulation(condition)), expected)


def test_film_starts_as_the_plain_mlp_without_condition():
    network = ConditionedMlp(DenoiserConfig(condition_join="film"), dim=6, condition_dim=0)
    x = torch.randn(5, 6)
    hidden = functional.relu(network.middle[0](functional.relu(network.first(x))))
    torch.testing.assert_close(network(x, network.modulation(None)), network.last(hidden))


def test_adaln_zero_starts_with_no_correction_whatever_the_condition():
    denoiser = Denoiser(
        DenoiserConfig(condition_join="adaln_zero"), dim=6, condition_dim=6, num_train_timesteps=100
    )
    modulation = denoiser.modulation(torch.randn(5, 6))
    modulation = modulation + denoiser.time_modulation(torch.arange(1, 6))
    assert not denoiser(torch.randn(5, 6), modulation).any()


def test_every_timestep_has_a_description_of_its_own():
    denoiser = make_denoiser("add")
    distances = torch.cdist(denoiser.sinusoids, denoiser.sinusoids)
    assert distances.fill_diagonal_(1.0).min() > 0.05
