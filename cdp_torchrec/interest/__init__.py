"""Interest modules: from a user's history to the interest vector of the ranking tower.

They are plain `nn.Module`s on dense tensors. `cdp` is the paper's; `pooled`, `condition_mlp` and
`none` are the floors that it has to beat; the others are the systems that the paper compares with.
"""

from collections.abc import Callable, Mapping
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
from cdp_torchrec.interest.ddrm import DdrmConfig, DdrmInterest
from cdp_torchrec.interest.dien import DienConfig, DienInterest
from cdp_torchrec.interest.diffrec import DiffRecConfig, DiffRecInterest
from cdp_torchrec.interest.din import DinConfig, DinInterest
from cdp_torchrec.interest.hstu import HstuConfig, HstuInterest
from cdp_torchrec.interest.none import NoInterest, NoneConfig
from cdp_torchrec.interest.pooled import PooledConfig, PooledInterest
from cdp_torchrec.interest.qin import QinConfig, QinInterest
from cdp_torchrec.interest.sasrec import SasrecConfig, SasrecInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.sim import SimConfig, SimInterest
from cdp_torchrec.interest.twin import TwinConfig, TwinInterest

__all__ = [
    "BehaviourSequence",
    "CdpConfig",
    "CdpInterest",
    "ConditionMlpConfig",
    "ConditionMlpInterest",
    "DdrmConfig",
    "DdrmInterest",
    "DienConfig",
    "DienInterest",
    "DiffRecConfig",
    "DiffRecInterest",
    "DinConfig",
    "DinInterest",
    "GatedPool",
    "HstuConfig",
    "HstuInterest",
    "InterestConfig",
    "InterestDims",
    "InterestInput",
    "InterestModule",
    "InterestOutput",
    "NoInterest",
    "NoneConfig",
    "PooledConfig",
    "PooledInterest",
    "QinConfig",
    "QinInterest",
    "SasrecConfig",
    "SasrecInterest",
    "SimConfig",
    "SimInterest",
    "TwinConfig",
    "TwinInterest",
    "build_interest",
]

InterestConfig = Annotated[
    NoneConfig
    | PooledConfig
    | ConditionMlpConfig
    | CdpConfig
    | DinConfig
    | DienConfig
    | SasrecConfig
    | SimConfig
    | QinConfig
    | TwinConfig
    | HstuConfig
    | DdrmConfig
    | DiffRecConfig,
    Field(discriminator="kind"),
]

_MODULES: Mapping[type, Callable[..., InterestModule]] = {
    NoneConfig: NoInterest,
    PooledConfig: PooledInterest,
    ConditionMlpConfig: ConditionMlpInterest,
    CdpConfig: CdpInterest,
    DinConfig: DinInterest,
    DienConfig: DienInterest,
    SasrecConfig: SasrecInterest,
    SimConfig: SimInterest,
    QinConfig: QinInterest,
    TwinConfig: TwinInterest,
    HstuConfig: HstuInterest,
    DdrmConfig: DdrmInterest,
    DiffRecConfig: DiffRecInterest,
}


def build_interest(config: InterestConfig, dims: InterestDims) -> InterestModule:
    """The interest module that a configuration names.

    Args:
        config: its section of the configuration.
        dims: widths of the inputs that the dataset offers.

    Raises:
        ConfigError: the dataset lacks what the module cannot do without.
    """
    return _MODULES[type(config)](config, dims)
