"""The network that predicts noise: a small MLP steered by condition and time (paper eqs. 9-10)."""

# B impressions, D latent dim, H hidden width, M modulation width, N timesteps

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.diffusion.config import DenoiserConfig

# Pairs of sine and cosine that describe a timestep.
_NUM_FREQUENCIES = 16
TIME_DIM = 2 * _NUM_FREQUENCIES
"""Width of the description of a timestep."""


class ConditionedMlp(nn.Module):
    """MLP whose behaviour is steered by a modulation vector of every impression.

    The modulation is a sum of parts, each linear: what does not change over denoising steps is
    computed once, outside of the loop.
    """

    def __init__(self, config: DenoiserConfig, *, dim: int, condition_dim: int) -> None:
        """Args: width of the latent, and of the condition (0: there is none)."""
        super().__init__()
        hidden_dim = config.hidden_multiple * dim
        self.condition_join = config.condition_join
        # With "add" the modulation is the bias of the first layer.
        self.first = nn.Linear(dim, hidden_dim, bias=config.condition_join != "add")
        self.middle = nn.ModuleList(
            nn.Linear(hidden_dim, hidden_dim) for _ in range(config.num_hidden_layers - 1)
        )
        self.last = nn.Linear(hidden_dim, dim)
        match config.condition_join:
            case "add":
                bias = torch.zeros(hidden_dim)
            case "film":
                one, zero = torch.ones(hidden_dim), torch.zeros(hidden_dim)
                bias = torch.cat([one, zero] * config.num_hidden_layers)
            case "adaln_zero":
                bias = torch.cat([torch.ones(dim), torch.zeros(2 * dim)])
        self.modulation_bias = nn.Parameter(bias)
        self.condition_projection = (
            self.modulation_projection(condition_dim) if condition_dim > 0 else None
        )

    def modulation_projection(self, input_dim: int) -> nn.Linear:
        """A new linear map from an input of this width into the modulation."""
        projection = nn.Linear(input_dim, len(self.modulation_bias), bias=False)
        if self.condition_join == "adaln_zero":
            nn.init.zeros_(projection.weight)
        return projection

    def modulation(self, condition: Tensor | None) -> Tensor:
        """Part of the modulation that depends on the condition [B, C]; [B, M], or [M] without."""
        if self.condition_projection is None or condition is None:
            return self.modulation_bias
        return functional.linear(condition, self.condition_projection.weight, self.modulation_bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Output of the MLP, [B, D], for the state x [B, D]."""
        match self.condition_join:
            case "add":
                hidden = functional.relu(torch.addmm(modulation, x, self.first.weight.t()))
                for layer in self.middle:
                    hidden = functional.relu(layer(hidden))
                return self.last(hidden)
            case "film":
                hidden = x
                parts = modulation.chunk(2 * (1 + len(self.middle)), dim=-1)
                for i, layer in enumerate([self.first, *self.middle]):
                    scale, shift = parts[2 * i], parts[2 * i + 1]
                    hidden = functional.relu(torch.addcmul(shift, layer(hidden), scale))
                return self.last(hidden)
            case "adaln_zero":
                scale, shift, gate = modulation.chunk(3, dim=-1)
                hidden = torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), scale)
                for layer in [self.first, *self.middle]:
                    hidden = functional.relu(layer(hidden))
                return gate * self.last(hidden)


class ConditionedDenoiser(nn.Module):
    """A conditioned MLP and what it knows of the noise in its state, which subclasses say."""

    def __init__(self, config: DenoiserConfig, *, dim: int, condition_dim: int) -> None:
        """Args: size of the network, width of the latent, and of the condition (0: none)."""
        super().__init__()
        self.network = ConditionedMlp(config, dim=dim, condition_dim=condition_dim)

    def modulation(self, condition: Tensor | None) -> Tensor:
        """Part of the modulation that depends on the condition [B, C], [B, M]; [M] without one."""
        return self.network.modulation(condition)


class Denoiser(ConditionedDenoiser):
    """Conditioned MLP that also knows the timestep (paper eq. 9; reading R1: k is a layer).

    Time enters as sinusoid -> Linear -> SiLU -> Linear. The parts of the modulation are asked for
    before the loop: `modulation(condition)` once, `time_modulation(timesteps)` once per grid.
    """

    sinusoids: Tensor
    """Description of every timestep, [T + 1, TIME_DIM]."""

    def __init__(
        self, config: DenoiserConfig, *, dim: int, condition_dim: int, num_train_timesteps: int
    ) -> None:
        super().__init__(config, dim=dim, condition_dim=condition_dim)
        self.time_hidden = nn.Linear(TIME_DIM, TIME_DIM)
        self.time_projection = self.network.modulation_projection(TIME_DIM)
        self.register_buffer("sinusoids", sinusoids(num_train_timesteps), persistent=False)

    def time_modulation(self, timesteps: Tensor) -> Tensor:
        """Part of the modulation of each timestep, [N, M]; timesteps int64 [N] in 0..T."""
        hidden = functional.silu(self.time_hidden(self.sinusoids[timesteps]))
        return self.time_projection(hidden)

    def forward(self, x_t: Tensor, modulation: Tensor) -> Tensor:
        """Correction of the noise-free prediction, [B, D].

        Args:
            x_t: noised interest, [B, D].
            modulation: sum of the condition's and the time's part, [B, M].
        """
        return self.network(x_t, modulation)


def sinusoids(num_train_timesteps: int) -> Tensor:
    """Description of every timestep 0..T by sine and cosine, [T + 1, TIME_DIM]."""
    # As in "Attention is all you need": wavelengths from 2 pi to 10,000 * 2 pi timesteps.
    exponents = torch.arange(_NUM_FREQUENCIES, dtype=torch.float64) / _NUM_FREQUENCIES
    frequencies = torch.exp(-math.log(10_000.0) * exponents)
    angles = torch.arange(num_train_timesteps + 1, dtype=torch.float64).outer(frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
