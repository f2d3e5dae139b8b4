"""Settings of every interest module; nothing here imports torch."""

from typing import Annotated

from pydantic import Field

from cdp_torchrec.interest.config.attention import AttentiveConfig
from cdp_torchrec.interest.config.augmentation import Diff4RecConfig
from cdp_torchrec.interest.config.gated import GatedConfig
from cdp_torchrec.interest.config.generative import GenerativeConfig
from cdp_torchrec.interest.config.long_sequence import LongSequenceConfig
from cdp_torchrec.interest.config.sequential import SequentialConfig

InterestConfig = Annotated[
    GatedConfig
    | AttentiveConfig
    | SequentialConfig
    | LongSequenceConfig
    | GenerativeConfig
    | Diff4RecConfig,
    Field(discriminator="kind"),
]
"""The settings of one module, told apart by its `kind`."""
