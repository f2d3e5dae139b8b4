"""Pooled gated history without any denoising: the floor that every CDP run must beat (K = 0)."""

from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.config.gated import PooledConfig
from cdp_torchrec.interest.pooling import Emission, HistoryPooling


class PooledInterest(InterestModule):
    """The interest is z_0, the mean of the category-gated history."""

    def __init__(self, config: PooledConfig, dims: InterestDims) -> None:
        super().__init__()
        self.pooling = HistoryPooling(config, dims)
        self.emission = Emission(config, dim=dims.item)
        self.interest_dim = self.emission.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of z_0, [B, interest_dim]."""
        pooled = self.pooling(inputs)
        interest = self.emission(pooled.latent, pooled=pooled, item=inputs.item)
        monitors = self.pooling.monitors(pooled) if self.reports else {}
        return InterestOutput(interest=interest, monitors=monitors)
