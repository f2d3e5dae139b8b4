"""A direct gain of the context on the interest, beside the mixture of experts.

Ours. What query, hour and source make of a taste is a product of weights of its attributes; a
convex mixture of experts, as eq. 8, can only average them.
"""

# B impressions, D embedding dim

import logging

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.condition import usable_experts
from cdp_torchrec.interest.config.gated import ConditionConfig

logger = logging.getLogger(__name__)


class ContextGain(nn.Module):
    """Factor 1 + MLP(query, context, scene) of each dimension; 1 at the start."""

    def __init__(self, config: ConditionConfig, dims: InterestDims, *, dim: int) -> None:
        """Args: settings, widths of the inputs, and D."""
        super().__init__()
        self.roles = gain_roles(config, dims)
        width = sum(getattr(dims, role) for role in self.roles)
        output = nn.Linear(config.gain_dim, dim)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.mlp = nn.Sequential(nn.Linear(width, config.gain_dim), nn.ReLU(), output)

    def forward(self, inputs: InterestInput) -> Tensor:
        """The factors, [B, D]."""
        # Not 1.0: torch 2.11 cannot compile a float that is added to a linear layer (on a CPU).
        return 1 + self.mlp(torch.cat([getattr(inputs, role) for role in self.roles], dim=1))

    @torch.no_grad()
    def monitors(self, gain: Tensor) -> dict[str, Tensor]:
        """Scalars for the log: how far the gain lies from 1, and how much of that is context.

        `gain_spread` is its standard deviation over the impressions, a mean over dimensions in
        quadrature; 0 as long as all contexts have the same gain.
        """
        return {
            "gain_shift": (gain - 1.0).square().mean().sqrt(),
            "gain_spread": gain.var(dim=0, correction=0).mean().sqrt(),
        }


def gain_roles(config: ConditionConfig, dims: InterestDims) -> tuple[str, ...]:
    """Inputs that the dataset has and whose expert is in use: the query's is "collaborative"."""
    experts = usable_experts(config, dims)
    of_expert = {"query": "collaborative", "context": "context", "scene": "scene"}
    return tuple(r for r, e in of_expert.items() if e in experts and getattr(dims, r) > 0)


def build_gain(config: ConditionConfig, dims: InterestDims, *, dim: int) -> ContextGain | None:
    """The gain, or None if it is not wanted or has no input, which is logged."""
    if config.gain_dim == 0:
        return None
    if not gain_roles(config, dims):
        if config.experts:
            logger.warning(
                "gain: the log has nothing of query, context and scene, so it is left out"
            )
        return None
    return ContextGain(config, dims, dim=dim)
