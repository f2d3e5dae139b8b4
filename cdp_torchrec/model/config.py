"""Settings of the ranking model."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import MAY_CHANGE, Config, not_with
from cdp_torchrec.interest.config import InterestConfig


class InteractionConfig(Config):
    """Parallel cross and deep layers over all features (paper Figure 1a)."""

    num_cross_layers: NonNegativeInt = 2
    """Low-rank cross layers (DCN-V2)."""
    cross_rank: Annotated[PositiveInt, not_with(num_cross_layers=0)] = 32
    """Rank of each cross layer."""
    deep_layer_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64)
    """Widths of the deep layers."""
    history_counts: bool = False
    """Also tell the tower how many behaviours the gated history has, and how many of them are on
    the target item itself, in log(1 + n) by segment of data.history.count_segments and, if asked
    for, by age (data.history.count_ages). Exact also for items that training never saw, and the
    same for every interest module."""
    exclude: tuple[str, ...] = ()
    """Features that reach the tower only through the interest module, such as ids too rare to
    generalise."""


class ModelConfig(Config):
    """The ranking model."""

    embedding_dim: Annotated[PositiveInt, Field(multiple_of=4)] = 16
    """Width of every embedding table; FBGEMM reads four columns at once."""
    num_embedding_sets: PositiveInt = 1
    """Sets that the columns of the tables are divided into. Each has an interest module and a
    tower of its own, and the logit is the mean of theirs (multi-embedding, arXiv 2310.04400): S
    times the dense work, for less that is due to the chance of one training."""
    embedding_init_std: PositiveFloat = 0.05
    """Standard deviation of the initial embeddings, the same under every sharding plan."""
    interest: InterestConfig
    """The interest module."""
    interaction: InteractionConfig = InteractionConfig()
    """Cross and deep layers."""
    over_arch_layer_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 32)
    """Hidden widths of the final MLP over [cross, deep, interest] (paper eq. 1)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the dense part; parameters and losses stay float32."""
    compile: Annotated[bool, MAY_CHANGE] = False
    """Compile the dense part with torch.compile."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embedding_dim % self.num_embedding_sets:
            raise ValueError(
                f"embedding_dim = {self.embedding_dim} must be a multiple of num_embedding_sets = "
                f"{self.num_embedding_sets}, which divide the columns of every table"
            )
        return self
