"""Embedding lookups of all id features in one sharded EmbeddingBagCollection."""

# B impressions, D embedding dim

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.layout import FeatureLayout


def table_name(entity: str) -> str:
    """Name of the embedding table of an entity."""
    return f"t_{entity}"


class SparseArch(nn.Module):
    """Sums of embeddings, [B, D] per key.

    All tables pool by SUM: means are divided in our own code, because a mean inside the
    collection is wrong when a plan mixes row-wise and other tables.
    """

    def __init__(self, layout: FeatureLayout, *, embedding_dim: int) -> None:
        """Declare the tables on the meta device; sharding materialises them.

        Args:
            layout: tables and keys.
            embedding_dim: width D of every table.
        """
        super().__init__()
        self.embedding_bag_collection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=table_name(entity),
                    embedding_dim=embedding_dim,
                    num_embeddings=table.num_embeddings,
                    feature_names=[f.key for f in layout.features if f.table == entity],
                    pooling=PoolingType.SUM,
                )
                for entity, table in layout.tables.items()
            ],
        )

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Sum of the embeddings of each bag, by key.

        Args:
            sparse: ids, stride B.
        """
        # By key, since their order depends on the sharding plan; and split at once, since the
        # backward of many single slices fills a tensor of full width for each.
        return self.embedding_bag_collection(sparse).to_dict()
