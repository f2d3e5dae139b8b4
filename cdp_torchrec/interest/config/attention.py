"""Settings of the modules that weigh behaviours by the target: DIN, SIM, ETA, QIN, TWIN, ADS."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cdp_torchrec.config import Config, only_if
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.interest.config.base import (
    EmbeddingNorm,
    InterestVectorConfig,
    TargetAttentionConfig,
)


class ActivationUnitConfig(Config):
    """How DIN weighs a behaviour for a target."""

    layer_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (36,)
    """Hidden widths of the attention MLP. Paper (Figure 2): one layer of 36. Its public code: 80
    and 40."""
    activation: Literal["prelu", "relu", "sigmoid"] = "prelu"
    """After each hidden layer. Paper: PReLU or Dice. Its public code: sigmoid. "relu" is the
    fastest."""
    normalise: Literal["none", "softmax"] = "none"
    """Paper: none, so that the interest grows with the number of relevant behaviours. Its public
    code: softmax over the history."""
    score_features: tuple[Literal["action", "age"], ...] = ()
    """What else of a behaviour moves its weight: its action type (if the log has one), the time
    since. Paper: nothing, only item and category, which the target has too."""
    embedding_norm: EmbeddingNorm = "none"
    """Layer norm of item, category and action embeddings on their way in. Paper: none. Fresh
    embeddings are so small that attention starts slowly."""


class DinConfig(InterestVectorConfig):
    """Settings of DIN."""

    kind: Literal["din"]
    """Selects the module."""
    attention: ActivationUnitConfig = ActivationUnitConfig()
    """How a behaviour is weighed."""
    recent_length: PositiveInt | None = None
    """Behaviours read, if fewer than the history lookup keeps."""

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated."""
        return HistoryLookup(recent=True, recent_length=self.recent_length)

    @property
    def reads_time_of_day(self) -> bool:
        """Only among what weighs a behaviour: it is no part of the interest."""
        return "action" in self.attention.score_features


class SimConfig(TargetAttentionConfig):
    """Settings of SIM."""

    kind: Literal["sim"]
    """Selects the module."""
    search: Literal["hard", "soft"] = "hard"
    """The GSU (paper section 3.1). "hard": behaviours in the target's category, as in CDP's eq. 2.
    "soft": behaviours with the highest learned relevance r_j."""
    num_kept: PositiveInt = 50
    """Behaviours that the search hands on. Its public code: 50. A hard search keeps the most recent
    ones."""
    short_length: PositiveInt = 10
    """Most recent behaviours that the DIN beside reads. Its public code: 10."""
    search_dim: Annotated[PositiveInt, only_if(search="soft")] = 16
    """Width of W_a v and W_b e_j in the soft search."""
    search_hidden_dim: Annotated[PositiveInt, only_if(search="soft")] = 64
    """Hidden width of the click model that trains the soft search. Its public code: 200."""
    search_loss_weight: Annotated[NonNegativeFloat, only_if(search="soft")] = 1.0
    """Weight alpha of the soft search's own click loss; beta, of the click loss itself, is 1.
    Paper: alpha = beta = 1; with hard search, alpha = 0."""
    short: ActivationUnitConfig = ActivationUnitConfig()
    """The DIN over the short history."""

    @property
    def searches(self) -> Mapping[str, int]:
        """One, by category or by relevance."""
        return {"num_kept": self.num_kept}

    @property
    def history(self) -> HistoryLookup:
        """The gated history and a short recent one, or the whole history."""
        if self.search == "hard":
            return HistoryLookup(gated=True, recent=True, recent_length=self.short_length)
        return HistoryLookup(recent=True, graph_changes_beyond=(self.num_kept,))


class EtaConfig(TargetAttentionConfig):
    """Settings of ETA."""

    kind: Literal["eta"]
    """Selects the module."""
    num_bits: Annotated[PositiveInt, Field(le=256)] = 32
    """Bits of a hash. More of them order behaviours more nearly by their angle to the target."""
    num_kept: PositiveInt = 48
    """Behaviours at the least Hamming distance that the attention reads. Paper: 48."""
    short_length: PositiveInt = 10
    """Most recent behaviours that the DIN beside reads. As in SIM."""
    short: ActivationUnitConfig = ActivationUnitConfig()
    """The DIN over the short history. Paper: target attention."""

    @property
    def searches(self) -> Mapping[str, int]:
        """One, by the distance of hashes."""
        return {"num_kept": self.num_kept}

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated."""
        return HistoryLookup(recent=True, graph_changes_beyond=(self.num_kept,))


class QinConfig(TargetAttentionConfig):
    """Settings of QIN; all defaults are ours, since the paper's are not public."""

    kind: Literal["qin"]
    """Selects the module."""
    num_query_kept: PositiveInt = 200
    """k1, behaviours most relevant to the query that the first stage keeps."""
    num_kept: PositiveInt = 50
    """k2, behaviours closest to the target that the second stage keeps of those."""
    relevance_loss_weight: PositiveFloat = 0.1
    """Weight of the loss that projects queries next to the items shown for them. It trains that
    projection alone."""
    relevance_temperature: PositiveFloat = 0.2
    """Divides the difference of two cosines in the relevance loss."""

    @property
    def searches(self) -> Mapping[str, int]:
        """By the query, then by the target."""
        return {"num_query_kept": self.num_query_kept, "num_kept": self.num_kept}

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated."""
        kept = (self.num_query_kept, self.num_kept)
        return HistoryLookup(recent=True, graph_changes_beyond=kept)


class TwinSearchConfig(TargetAttentionConfig):
    """Settings of TWIN's search, over behaviours or over clusters of them."""

    num_kept: PositiveInt = 100
    """Behaviours with the highest scores that the attention reads. Paper: 100."""
    kept_by: Literal["mean", "each_head"] = "mean"
    """Whose scores choose the behaviours. "mean": the mean over heads, one choice for all heads.
    "each_head": every head keeps its own; it needs memory for scores of all behaviours."""

    @property
    def searches(self) -> Mapping[str, int]:
        """One, by the scores of the attention."""
        return {"num_kept": self.num_kept}


class TwinConfig(TwinSearchConfig):
    """Settings of TWIN."""

    kind: Literal["twin"]
    """Selects the module."""

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated."""
        return HistoryLookup(recent=True, graph_changes_beyond=(self.num_kept,))


class TwinV2Config(TwinSearchConfig):
    """Settings of TWIN-V2."""

    kind: Literal["twin_v2"]
    """Selects the module."""

    @property
    def history(self) -> HistoryLookup:
        """Clusters of the whole history, not gated."""
        return HistoryLookup(recent=True, clustered=True, graph_changes_beyond=(self.num_kept,))


class AdsConfig(TargetAttentionConfig):
    """Settings of ADS; the sizes are ours."""

    kind: Literal["ads"]
    """Selects the module."""
    meta_dim: PositiveInt = 16
    """Hidden width of each meta-network."""
    generated_dim: PositiveInt = 8
    """Hidden width of the generated network that modulates behaviours."""
    num_queries: PositiveInt = 4
    """Queries generated for each target."""
    max_domains: PositiveInt = 16
    """Most private meta-networks; with more domains, some share one."""
    recent_length: PositiveInt | None = None
    """Behaviours read, if fewer than the history lookup keeps."""

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated, and the domain."""
        return HistoryLookup(recent=True, recent_length=self.recent_length, domain=True)


AttentiveConfig = (
    DinConfig | SimConfig | EtaConfig | QinConfig | TwinConfig | TwinV2Config | AdsConfig
)
