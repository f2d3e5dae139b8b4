"""What shards the collections of a model."""

from typing import cast

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder, ShardingType

from cdp_torchrec.distributed.communication import communication_codecs
from cdp_torchrec.distributed.plans.config import ShardingConfig

_PLAIN = ShardingConfig()


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """The stock sharder without its filter that hides row-wise types on CPU, where they work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All sharding types."""
        return [sharding_type.value for sharding_type in ShardingType]


def sharders(config: ShardingConfig = _PLAIN) -> list[ModuleSharder[nn.Module]]:
    """What shards the collections of a model, and what the planner reads its estimates from.

    Args:
        config: precision of the communication, and whether caches are filled ahead.
    """
    codecs = communication_codecs(config.communication)
    # For all tables: TorchRec logs an error for each one without it, though only caches use it.
    fused_params = {"prefetch_pipeline": True} if config.prefetch else None
    bags = AllTypesSharder(fused_params, qcomm_codecs_registry=codecs)
    single = EmbeddingCollectionSharder(fused_params, qcomm_codecs_registry=codecs)
    every = (
        bags,
        single,
        ManagedCollisionEmbeddingBagCollectionSharder(bags),
        ManagedCollisionEmbeddingCollectionSharder(single),
    )
    return [cast(ModuleSharder[nn.Module], sharder) for sharder in every]
