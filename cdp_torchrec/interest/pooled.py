"""Pooled gated history without any denoising: the floor that every CDP run must beat (K = 0)."""

from typing import ClassVar, Literal

from cdp_torchrec.interest.base import (
    HistoryForm,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.pooling import Emission, GatedHistoryConfig, HistoryPooling


class PooledConfig(GatedHistoryConfig):
    """Paper eqs. 2-3 only."""

    kind: Literal["pooled"]
    """Selects the module."""


class PooledInterest(InterestModule):
    """The interest is z_0, the mean of the category-gated history."""

    history: ClassVar[HistoryForm] = "gated_pool"

    def __init__(self, config: PooledConfig, dims: InterestDims) -> None:
        super().__init__()
        self.pooling = HistoryPooling(config, dim=dims.item)
        self.emission = Emission(config, dim=dims.item)
        self.interest_dim = self.emission.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of z_0, [B, interest_dim]."""
        assert inputs.history is not None
        pooled = self.pooling(inputs.history)
        interest = self.emission(
            pooled.latent, pooled=pooled, history=inputs.history, item=inputs.item
        )
        monitors = self.pooling.monitors(pooled) if self.training else {}
        return InterestOutput(interest=interest, monitors=monitors)
