"""No interest: the floor that shows what the history is worth at all."""

from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.config.gated import NoneConfig


class NoInterest(InterestModule):
    """Adds nothing to the tower."""

    def __init__(self, config: NoneConfig, dims: InterestDims) -> None:
        super().__init__()
        self.interest_dim = 0

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """A vector of width 0, [B, 0]."""
        return InterestOutput(interest=inputs.item[:, :0])
