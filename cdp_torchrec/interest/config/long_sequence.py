"""Settings of the modules that encode a long history in layers: LONGER, MARM and MTGR."""

# D embedding dim

from typing import Annotated, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import not_with
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.interest.config.base import InterestVectorConfig


class LongerConfig(InterestVectorConfig):
    """Sizes of LONGER; no dropout, as in every other module here."""

    kind: Literal["longer"]
    """Selects the module."""
    max_length: PositiveInt = 100
    """Most recent behaviours that are read. Paper: up to 10,000."""
    group_size: PositiveInt = 4
    """K: adjacent behaviours that are merged into one token, K times as wide. Paper: 4 and 8. At 1
    nothing is merged, and there is no inner transformer."""
    num_queries: Annotated[PositiveInt, not_with(num_layers=1)] = 100
    """m: the most recent merged tokens, which alone are encoded further after the first layer.
    Paper: about 100, the most recent ones or a sample of all."""
    num_layers: PositiveInt = 2
    """The first layer attends to all merged tokens, the others to the m most recent. Ours: 1 + 1.
    """
    num_heads: PositiveInt = 4
    """Heads of each layer; divides K * D. Ours."""
    inner_heads: Annotated[PositiveInt, not_with(group_size=1)] = 1
    """Heads of the transformer inside a group; divides D. Ours."""
    num_cls_tokens: NonNegativeInt = 1
    """Learned global tokens, where attention can rest. Paper: some; their number is ours."""
    age_dim: PositiveInt = 8
    """Width of the embedding of the time between a behaviour and the request. Ours."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


class MarmConfig(InterestVectorConfig):
    """Sizes of MARM; no dropout, as in every other module here."""

    kind: Literal["marm"]
    """Selects the module."""
    max_length: PositiveInt = 50
    """n: behaviours before a target that it attends to. The outputs of the last n depend on
    num_layers * n of them, so that many are read. Ours."""
    num_layers: PositiveInt = 2
    """Layers of target attention; all but the last have outputs to cache. Ours."""
    width: PositiveInt = 32
    """Width of a token, and so of each cached output. Ours."""
    num_heads: PositiveInt = 4
    """Heads of each layer; divides the width. Ours."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours, n for each layer."""
        return HistoryLookup(recent=True, recent_length=self.max_length * self.num_layers)

    @model_validator(mode="after")
    def _check_heads(self) -> "MarmConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is no multiple of num_heads = {self.num_heads}")
        return self


class MtgrConfig(InterestVectorConfig):
    """Sizes of MTGR; no dropout, as in every other module here."""

    kind: Literal["mtgr"]
    """Selects the module."""
    max_length: PositiveInt = 50
    """Most recent behaviours that are encoded, static and real-time ones together. Ours."""
    realtime_hours: PositiveFloat = 24.0
    """Age at which a behaviour is static: static ones all see each other, those since then only
    what came before them. Ours; the paper's rows are those of a user and a day."""
    num_layers: PositiveInt = 2
    """Layers of the encoder. Ours."""
    num_heads: PositiveInt = 1
    """Heads of each layer. Ours."""
    attention_dim: PositiveInt = 16
    """Width A of the queries and keys of a head. Ours."""
    linear_dim: PositiveInt = 16
    """Width V of the values and gates of a head. Ours."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


LongSequenceConfig = LongerConfig | MarmConfig | MtgrConfig
"""The settings of one module."""
