"""No interest: the floor that shows what the history is worth at all."""

from typing import Literal

from cdp_torchrec.interest.base import (
    InterestConfigBase,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)


class NoneConfig(InterestConfigBase):
    """The tower sees no history."""

    kind: Literal["none"]
    """Selects the module."""


class NoInterest(InterestModule):
    """Adds nothing to the tower."""

    def __init__(self, config: NoneConfig, dims: InterestDims) -> None:
        super().__init__()
        self.interest_dim = 0

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """A vector of width 0, [B, 0]."""
        return InterestOutput(interest=inputs.item[:, :0])
