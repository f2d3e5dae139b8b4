"""Evidence as the noise level: what the denoiser is told, and where a chain goes."""

import pytest
import torch
from torch import Tensor

from cdp_torchrec.diffusion.config import NUM_EVIDENCE_LEVELS, DenoiserConfig
from cdp_torchrec.diffusion.denoiser import ConditionedMlp
from cdp_torchrec.diffusion.evidence import EvidenceDenoiser, evidence_level

COUNTS = torch.tensor([0.0, 1.0, 3.0, 40.0, 180.0, 2000.0])


@pytest.fixture
def denoiser() -> EvidenceDenoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(condition_join="adaln_zero", num_hidden_layers=1)
    return EvidenceDenoiser(config, dim=5, condition_dim=4)


class Oracle(ConditionedMlp):
    """Corrects any state to a given latent, and remembers the states and modulations it saw."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__(DenoiserConfig(), dim=5, condition_dim=0)
        self.latent = latent
        self.states: list[Tensor] = []
        self.modulations: list[Tensor] = []

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        self.states.append(x)
        self.modulations.append(modulation)
        return self.latent - x


def with_oracle(denoiser: EvidenceDenoiser, latent: Tensor) -> Oracle:
    oracle = Oracle(latent)
    denoiser.network = oracle
    # Each level's modulation is its number.
    levels = torch.arange(NUM_EVIDENCE_LEVELS).float().unsqueeze(1)
    denoiser.level_modulations = lambda: levels
    return oracle


def test_levels_are_half_octaves_of_the_number_of_behaviours():
    counts = torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0, 151.0, 152.0, 1e6])
    assert evidence_level(counts).tolist() == [0, 2, 4, 6, 8, 14, 15, 15]
    assert evidence_level(torch.arange(1000.0)).diff().min() == 0


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_fresh_denoiser_returns_the_mean_itself(denoiser, num_steps):
    x, modulation = torch.randn(6, 5), denoiser.modulation(torch.randn(6, 4))
    found = denoiser.denoise(x, COUNTS, modulation, num_steps=num_steps)
    torch.testing.assert_close(found, x)
    torch.testing.assert_close(denoiser.predict(x, COUNTS, modulation), x)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_oracle_brings_any_evidence_to_the_latent(denoiser, num_steps):
    latent = torch.randn(6, 5)
    with_oracle(denoiser, latent)
    found = denoiser.denoise(torch.randn(6, 5), COUNTS, torch.zeros(6, 1), num_steps=num_steps)
    torch.testing.assert_close(found, latent)


def test_the_noise_of_a_state_shrinks_as_its_evidence_grows(denoiser):
    """After each step the distance from the latent is that of a mean of so many behaviours."""
    latent, x = torch.zeros(6, 5), torch.randn(6, 5)
    oracle = with_oracle(denoiser, latent)
    denoiser.denoise(x, COUNTS, torch.zeros(6, 1), num_steps=4)
    last = 2.0**7.5 - 1.0
    for step, state in enumerate(oracle.states):
        count = (COUNTS + 1) * ((last + 1) / (COUNTS + 1)).clamp(min=1) ** (step / 4) - 1
        expected = x * (COUNTS / count.clamp(min=1e-6)).sqrt().unsqueeze(1)
        expected[0] = x[0] if step == 0 else 0.0  # no behaviour: nothing of the state is kept
        torch.testing.assert_close(state, expected)
        assert oracle.modulations[step].squeeze(1).tolist() == evidence_level(count).tolist()


def test_beyond_the_last_level_a_state_waits_for_the_last_step(denoiser):
    x, latent = torch.randn(1, 5), torch.randn(1, 5)
    oracle = with_oracle(denoiser, latent)
    denoiser.denoise(x, torch.tensor([500.0]), torch.zeros(1, 1), num_steps=3)
    assert len(oracle.states) == 3
    for state in oracle.states:
        torch.testing.assert_close(state, x)
