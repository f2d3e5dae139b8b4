"""Settings that interest modules share: what they read of the history, and what they emit."""

# D width of an item

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from cdp_torchrec.config import Config
from cdp_torchrec.data.history.lookup import HistoryLookup

EmitT = TypeVar("EmitT", bound=str)
EmbeddingNorm = Literal["none", "layernorm"]


class InterestConfigBase(Config):
    """What every interest module's configuration offers to the reader of data."""

    @property
    def history(self) -> HistoryLookup:
        """The forms of history that the module reads."""
        return HistoryLookup()

    @property
    def reads_time_of_day(self) -> bool:
        """Whether data.history.dayparts changes anything.

        It does where a module reads what a behaviour has beside item, category and age, or the sums
        of a pooled history by the time of day.
        """
        return self.history.has_sequences or self.history.pool_segments is not None

    @property
    def searches(self) -> Mapping[str, int]:
        """Behaviours that each search of the module hands on, by key; empty: it does not search."""
        return {}


def _once(emit: tuple[EmitT, ...]) -> tuple[EmitT, ...]:
    if len(set(emit)) < len(emit):
        raise ValueError("each part can be emitted once only")
    return emit


Emitted = Annotated[tuple[EmitT, ...], Field(min_length=1), AfterValidator(_once)]
"""One or more parts, each of them once."""


class InterestVectorConfig(InterestConfigBase):
    """Settings of every module whose result is one vector as wide as the target item."""

    emit: Emitted[Literal["interest", "interest_item"]] = ("interest",)
    """What the tower receives, in this order. "interest": the module's vector, [D].
    "interest_item": its Hadamard product with the target item, both in layer norm, [D]."""


class AttentionConfig(Config):
    """Sizes of an attention of the target item over behaviours."""

    attention_dim: PositiveInt = 32
    """Width of queries, keys and values over all heads. Ours."""
    num_heads: PositiveInt = 4
    """Heads; a divisor of attention_dim. TWIN: 4. The other papers state none."""
    age_dim: PositiveInt = 8
    """Width of the embedding of the time since a behaviour. Ours."""

    @model_validator(mode="after")
    def _check_heads(self) -> "AttentionConfig":
        if self.attention_dim % self.num_heads:
            raise ValueError(
                f"attention_dim = {self.attention_dim} is no multiple of "
                f"num_heads = {self.num_heads}"
            )
        return self


class TargetAttentionConfig(AttentionConfig, InterestVectorConfig):
    """Settings of every module that attends to the behaviours that a search found."""

    embedding_norm: EmbeddingNorm = "none"
    """Layer norm of item, category and action embeddings on their way into search and attention.
    Papers: none. Fresh embeddings are so small that attention starts slowly."""
