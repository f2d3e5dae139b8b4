"""CDP's network without diffusion: one shot from the pooled history and the condition.

The row that tells what diffusion adds: same inputs, same condition, same network size.
"""

from cdp_torchrec.diffusion.denoiser import ConditionedMlp
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.condition import build_condition
from cdp_torchrec.interest.config.gated import ConditionMlpConfig
from cdp_torchrec.interest.context_gain import build_gain
from cdp_torchrec.interest.pooling import Emission, HistoryPooling


class ConditionMlpInterest(InterestModule):
    """The interest is z_0 plus a correction that depends on z_0 and on the condition."""

    def __init__(self, config: ConditionMlpConfig, dims: InterestDims) -> None:
        super().__init__()
        dim = dims.item
        self.pooling = HistoryPooling(config, dims)
        self.condition = build_condition(config.condition, dims, dim=dim)
        self.gain = build_gain(config.condition, dims, dim=dim)
        self.network = ConditionedMlp(
            config.network, dim=dim, condition_dim=0 if self.condition is None else dim
        )
        self.emission = Emission(config, dim=dim)
        self.interest_dim = self.emission.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the corrected interest, [B, interest_dim]."""
        pooled = self.pooling(inputs)
        fused = None if self.condition is None else self.condition(inputs)
        modulation = self.network.modulation(None if fused is None else fused.condition)
        interest = pooled.latent + self.network(pooled.latent, modulation)
        gain = None if self.gain is None else self.gain(inputs)
        if gain is not None:
            interest = interest * gain
        emitted = self.emission(interest, pooled=pooled, item=inputs.item)
        monitors = {}
        if self.reports:
            monitors = self.pooling.monitors(pooled)
            if self.condition is not None and fused is not None:
                monitors |= self.condition.monitors(fused)
            if self.gain is not None and gain is not None:
                monitors |= self.gain.monitors(gain)
        return InterestOutput(interest=emitted, monitors=monitors)
