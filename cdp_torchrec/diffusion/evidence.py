"""Evidence as the noise level: what a denoiser knows is how many behaviours its state was made of.

A mean of n behaviours is an observation of the taste whose noise has variance 1 / n, so n stands
where a diffusion process has its timestep, and a chain goes from few behaviours to many.
"""

# B impressions, D latent dim, M modulation width, K steps, N levels

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.diffusion.config import NUM_EVIDENCE_LEVELS, DenoiserConfig
from cdp_torchrec.diffusion.denoiser import ConditionedDenoiser

_LAST_COUNT = 2.0 ** ((NUM_EVIDENCE_LEVELS - 1) / 2) - 1.0
_LEVEL_WIDTH = 32


class EvidenceDenoiser(ConditionedDenoiser):
    """Conditioned MLP that predicts the latent of unlimited evidence, told how much there is.

    With a network of output zero the prediction is the state itself.
    """

    def __init__(self, config: DenoiserConfig, *, dim: int, condition_dim: int) -> None:
        """Args: size of the network, width of the latent, and of the condition (0: none)."""
        super().__init__(config, dim=dim, condition_dim=condition_dim)
        self.levels = nn.Embedding(NUM_EVIDENCE_LEVELS, _LEVEL_WIDTH)
        self.level_hidden = nn.Linear(_LEVEL_WIDTH, _LEVEL_WIDTH)
        self.level_projection = self.network.modulation_projection(_LEVEL_WIDTH)

    def level_modulations(self) -> Tensor:
        """Part of the modulation of every level, [N, M]."""
        hidden = functional.silu(self.level_hidden(self.levels.weight))
        return self.level_projection(hidden)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Predicted latent of unlimited evidence, [B, D].

        Args:
            x: normalised mean of some behaviours, [B, D].
            modulation: sum of the condition's and the level's part, [B, M].
        """
        return x + self.network(x, modulation)

    def predict(self, x: Tensor, count: Tensor, condition_modulation: Tensor) -> Tensor:
        """As forward, of a mean of `count` behaviours [B]."""
        level = self.level_modulations().index_select(0, evidence_level(count))
        return self(x, condition_modulation + level)

    def denoise(
        self, x: Tensor, count: Tensor, condition_modulation: Tensor, *, num_steps: int
    ) -> Tensor:
        """The whole reverse process, [B, D]: K calls at evidence from n to that of the last level.

        One step is DDIM (eta = 0, Song et al. 2021, eq. 12) for a state x_0 + noise / sqrt(n): its
        distance from the prediction shrinks as the standard deviation of the noise does. The state
        of a user beyond the last level stays until the last call.

        Args:
            x: normalised mean of `count` behaviours, [B, D].
            count: n, float [B].
            condition_modulation: from `modulation`.
            num_steps: K, 1 or more.
        """
        levels = self.level_modulations()
        growth = ((_LAST_COUNT + 1.0) / (count + 1.0)).clamp(min=1.0) ** (1.0 / num_steps)
        for step in range(num_steps):
            modulation = condition_modulation + levels.index_select(0, evidence_level(count))
            predicted = self(x, modulation)
            if step == num_steps - 1:
                return predicted
            following = (count + 1.0) * growth - 1.0
            kept = (count / following.clamp(min=1e-6)).sqrt().unsqueeze(1)
            x, count = predicted + kept * (x - predicted), following
        raise AssertionError("there is at least one step")


def evidence_level(count: Tensor) -> Tensor:
    """2 log2(n + 1), rounded, up to the last level: int64 [B] of n behaviours, float [B]."""
    level = (2.0 * torch.log2(count + 1.0)).round().long()
    return level.clamp(max=NUM_EVIDENCE_LEVELS - 1)
