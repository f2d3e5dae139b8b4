"""The network of DiffRec and DDRM: an MLP on [x_t ; time ; condition] that predicts x_0."""

# B rows, D width of the state, C width of the condition, T diffusion steps

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.config import ConcatDenoiserConfig

_MAX_PERIOD = 10_000.0
_BIAS_STD = 0.001


class ConcatDenoiser(nn.Module):
    """x_0 predicted from a noised state (`DNN` of DiffRec and, with a condition, of DDRM).

    The papers drop out half of x_t in training; that draw depends on the batch, so it is left out
    here, where the noise of x_t is the only one.
    """

    sinusoids: Tensor
    """Description of every timestep, [T + 1, time_dim]; the first step is angle 0, as there."""

    def __init__(
        self,
        config: ConcatDenoiserConfig,
        *,
        dim: int,
        condition_dim: int = 0,
        num_train_timesteps: int,
    ) -> None:
        super().__init__()
        self.time = nn.Linear(config.time_dim, config.time_dim)
        sizes = [dim + config.time_dim + condition_dim, *config.hidden_sizes, dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), _activation(config)]
        self.mlp = nn.Sequential(*layers[:-1])
        self.register_buffer(
            "sinusoids", concat_sinusoids(num_train_timesteps, config.time_dim), persistent=False
        )
        self.apply(_initialise)

    def forward(
        self, x_t: Tensor, timesteps: Tensor | int, condition: Tensor | None = None
    ) -> Tensor:
        """Predicted x_0, [B, D].

        Args:
            x_t: noised state, [B, D].
            timesteps: in 1..T, one for all, or int64 [B].
            condition: clean vector of the other side, [B, C], if the network has one.
        """
        time = self.time(self.sinusoids[timesteps]).expand(x_t.shape[0], -1)
        parts = [x_t, time] if condition is None else [x_t, time, condition]
        return self.mlp(torch.cat(parts, dim=1))


def _activation(config: ConcatDenoiserConfig) -> nn.Module:
    return nn.Tanh() if config.activation == "tanh" else nn.ReLU()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.normal_(module.bias, std=_BIAS_STD)


def concat_sinusoids(num_train_timesteps: int, dim: int) -> Tensor:
    """Cosines and sines of every timestep as published codes have them, [T + 1, dim], dim even."""
    exponents = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)
    frequencies = torch.exp(-math.log(_MAX_PERIOD) * exponents)
    # The published code counts timesteps from 0; entry 0 is the clean state and never asked for.
    angles = (torch.arange(num_train_timesteps + 1, dtype=torch.float64) - 1).outer(frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()
