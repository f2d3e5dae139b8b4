"""All interest modules and their settings, and the one that a configuration names."""

from collections.abc import Callable, Mapping

from cdp_torchrec.interest.ads import AdsInterest
from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.cadirec import CadirecInterest
from cdp_torchrec.interest.cddrec import CddrecInterest
from cdp_torchrec.interest.cdp import CdpInterest
from cdp_torchrec.interest.cdp_evidence import EvidenceCdp
from cdp_torchrec.interest.cdp_timestep import TimestepCdp
from cdp_torchrec.interest.condition_mlp import ConditionMlpInterest
from cdp_torchrec.interest.config import InterestConfig
from cdp_torchrec.interest.config.attention import (
    AdsConfig,
    DinConfig,
    EtaConfig,
    QinConfig,
    SimConfig,
    TwinConfig,
    TwinV2Config,
)
from cdp_torchrec.interest.config.augmentation import Diff4RecConfig
from cdp_torchrec.interest.config.gated import (
    CdpConfig,
    ConditionMlpConfig,
    NoneConfig,
    PooledConfig,
)
from cdp_torchrec.interest.config.generative import (
    CddrecConfig,
    DdrmConfig,
    DiffRecConfig,
    DiffuminConfig,
)
from cdp_torchrec.interest.config.load import load_interest
from cdp_torchrec.interest.config.long_sequence import LongerConfig, MarmConfig, MtgrConfig
from cdp_torchrec.interest.config.sequential import (
    CadirecConfig,
    DienConfig,
    HstuConfig,
    SasrecConfig,
)
from cdp_torchrec.interest.ddrm import DdrmInterest
from cdp_torchrec.interest.dien import DienInterest
from cdp_torchrec.interest.diff4rec import Diff4RecInterest
from cdp_torchrec.interest.diffrec import DiffRecInterest
from cdp_torchrec.interest.diffumin import DiffuminInterest
from cdp_torchrec.interest.din import DinInterest
from cdp_torchrec.interest.eta import EtaInterest
from cdp_torchrec.interest.hstu import HstuInterest
from cdp_torchrec.interest.longer import LongerInterest
from cdp_torchrec.interest.marm import MarmInterest
from cdp_torchrec.interest.mtgr import MtgrInterest
from cdp_torchrec.interest.none import NoInterest
from cdp_torchrec.interest.output_cache import OutputCache
from cdp_torchrec.interest.pooled import PooledInterest
from cdp_torchrec.interest.qin import QinInterest
from cdp_torchrec.interest.sasrec import SasrecInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.sim import SimInterest
from cdp_torchrec.interest.twin import TwinInterest
from cdp_torchrec.interest.twin_v2 import TwinV2Interest

__all__ = [
    "AdsConfig",
    "AdsInterest",
    "BehaviourSequence",
    "CadirecConfig",
    "CadirecInterest",
    "CddrecConfig",
    "CddrecInterest",
    "CdpConfig",
    "CdpInterest",
    "ConditionMlpConfig",
    "ConditionMlpInterest",
    "DdrmConfig",
    "DdrmInterest",
    "DienConfig",
    "DienInterest",
    "Diff4RecConfig",
    "Diff4RecInterest",
    "DiffRecConfig",
    "DiffRecInterest",
    "DiffuminConfig",
    "DiffuminInterest",
    "DinConfig",
    "DinInterest",
    "EtaConfig",
    "EtaInterest",
    "GatedPool",
    "HstuConfig",
    "HstuInterest",
    "InterestConfig",
    "InterestDims",
    "InterestInput",
    "InterestModule",
    "InterestOutput",
    "LongerConfig",
    "LongerInterest",
    "MarmConfig",
    "MarmInterest",
    "MtgrConfig",
    "MtgrInterest",
    "NoInterest",
    "NoneConfig",
    "OutputCache",
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
    "TwinV2Config",
    "TwinV2Interest",
    "build_interest",
    "load_interest",
]


def _build_cdp(config: CdpConfig, dims: InterestDims) -> CdpInterest:
    match config.noise_level:
        case "timestep":
            return TimestepCdp(config, dims)
        case "evidence":
            return EvidenceCdp(config, dims)


_MODULES: Mapping[type, Callable[..., InterestModule]] = {
    NoneConfig: NoInterest,
    PooledConfig: PooledInterest,
    ConditionMlpConfig: ConditionMlpInterest,
    CdpConfig: _build_cdp,
    DinConfig: DinInterest,
    DienConfig: DienInterest,
    SasrecConfig: SasrecInterest,
    CadirecConfig: CadirecInterest,
    CddrecConfig: CddrecInterest,
    SimConfig: SimInterest,
    EtaConfig: EtaInterest,
    QinConfig: QinInterest,
    TwinConfig: TwinInterest,
    TwinV2Config: TwinV2Interest,
    AdsConfig: AdsInterest,
    HstuConfig: HstuInterest,
    DdrmConfig: DdrmInterest,
    DiffRecConfig: DiffRecInterest,
    Diff4RecConfig: Diff4RecInterest,
    DiffuminConfig: DiffuminInterest,
    LongerConfig: LongerInterest,
    MarmConfig: MarmInterest,
    MtgrConfig: MtgrInterest,
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
