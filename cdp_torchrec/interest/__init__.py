"""Interest modules: from a user's history to the interest vector of the ranking tower.

They are plain `nn.Module`s on dense tensors. `cdp` is the paper's; `pooled`, `condition_mlp` and
`none` are the floors that it has to beat.
"""

from typing import Annotated

from pydantic import Field

from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.cdp import CdpConfig, CdpInterest
from cdp_torchrec.interest.condition_mlp import ConditionMlpConfig, ConditionMlpInterest
from cdp_torchrec.interest.none import NoInterest, NoneConfig
from cdp_torchrec.interest.pooled import PooledConfig, PooledInterest

__all__ = [
    "CdpConfig",
    "CdpInterest",
    "ConditionMlpConfig",
    "ConditionMlpInterest",
    "GatedPool",
    "InterestConfig",
    "InterestDims",
    "InterestInput",
    "InterestModule",
    "InterestOutput",
    "NoInterest",
    "NoneConfig",
    "PooledConfig",
    "PooledInterest",
    "build_interest",
]

InterestConfig = Annotated[
    NoneConfig | PooledConfig | ConditionMlpConfig | CdpConfig, Field(discriminator="kind")
]


def build_interest(
    config: InterestConfig, dims: InterestDims, *, num_segments: int
) -> InterestModule:
    """The interest module that a configuration names.

    Args:
        config: its section of the configuration.
        dims: widths of the inputs that the dataset offers.
        num_segments: recency segments K in which SparseArch looks the gated history up.

    Raises:
        ValueError: the lookup has another number of segments than the module asks for.
    """
    if isinstance(config, NoneConfig):
        return NoInterest()
    if config.num_segments != num_segments:
        raise ValueError(
            f"interest.recency_segments = {list(config.recency_segments)} makes "
            f"{config.num_segments} segments, but the history is looked up in {num_segments}"
        )
    match config:
        case PooledConfig():
            return PooledInterest(config, dims)
        case ConditionMlpConfig():
            return ConditionMlpInterest(config, dims)
        case CdpConfig():
            return CdpInterest(config, dims)
