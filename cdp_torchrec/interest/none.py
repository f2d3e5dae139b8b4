"""No interest: the floor that shows what the history is worth at all."""

from typing import ClassVar, Literal

from cdp_torchrec.config import Config
from cdp_torchrec.interest.base import HistoryForm, InterestInput, InterestModule, InterestOutput


class NoneConfig(Config):
    """The tower sees no history."""

    kind: Literal["none"]
    """Selects the module."""

    @property
    def recency_segments(self) -> tuple[int, ...]:
        """No segments: no history is looked up."""
        return ()

    @property
    def num_segments(self) -> int:
        """No segments: no history is looked up."""
        return 0


class NoInterest(InterestModule):
    """Adds nothing to the tower."""

    history: ClassVar[HistoryForm] = "none"

    def __init__(self) -> None:
        super().__init__()
        self.interest_dim = 0

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """A vector of width 0, [B, 0]."""
        return InterestOutput(interest=inputs.item[:, :0])
