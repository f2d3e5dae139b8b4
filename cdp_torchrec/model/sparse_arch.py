"""Embedding lookups of all id features: pooled ones, and behaviours that stay apart."""

# B impressions, L behaviours, D embedding dim

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from cdp_torchrec.data.layout import FeatureLayout, SparseFeature

TABLE_MARKS = (".embedding_bags.", ".embeddings.")
"""Parts of the names of table parameters in the two collections."""


def table_name(entity: str) -> str:
    """Name of the embedding table of an entity."""
    return f"t_{entity}"


def is_table(parameter: str) -> bool:
    """Whether a parameter of a model is an embedding table."""
    return any(mark in parameter for mark in TABLE_MARKS)


class SparseArch(nn.Module):
    """Embeddings by key: sums of bags [B, D], and single behaviours [L, D].

    A table lives in one collection. Those that sequences read are in an EmbeddingCollection, with
    all their features, so that a behaviour and the target item share their embedding; all others
    are in an EmbeddingBagCollection. All bags pool by SUM: means are divided in our own code,
    because a mean inside a collection is wrong when a plan mixes row-wise and other tables.
    """

    def __init__(self, layout: FeatureLayout, *, embedding_dim: int) -> None:
        """Declare the tables on the meta device; sharding materialises them.

        Args:
            layout: tables and keys.
            embedding_dim: width D of every table.
        """
        super().__init__()
        meta = torch.device("meta")
        self.embedding_bag_collection = EmbeddingBagCollection(
            device=meta,
            tables=[
                EmbeddingBagConfig(
                    name=table_name(entity),
                    embedding_dim=embedding_dim,
                    num_embeddings=layout.tables[entity].num_embeddings,
                    feature_names=keys,
                    pooling=PoolingType.SUM,
                )
                for entity, keys in _keys_by_table(layout.pooled_features).items()
            ],
        )
        self.embedding_collection = None
        self.by_key = EmbeddingsByKey(layout)
        if layout.sequence_features:
            self.embedding_collection = EmbeddingCollection(
                device=meta,
                tables=[
                    EmbeddingConfig(
                        name=table_name(entity),
                        embedding_dim=embedding_dim,
                        num_embeddings=layout.tables[entity].num_embeddings,
                        feature_names=keys,
                    )
                    for entity, keys in _keys_by_table(layout.sequence_features).items()
                ],
            )

    def forward(
        self, sparse: KeyedJaggedTensor, sequence: KeyedJaggedTensor | None
    ) -> dict[str, Tensor]:
        """Sum of the embeddings of each bag, and the embedding of each behaviour, by key.

        Args:
            sparse: ids of pooled lookups, stride B.
            sequence: ids of the tables that sequences read, stride B; None without such tables.
        """
        behaviours = None
        if self.embedding_collection is not None:
            behaviours = self.embedding_collection(sequence)
        return self.by_key(self.embedding_bag_collection(sparse), behaviours)


class EmbeddingsByKey(nn.Module):
    """Results of both collections in one dictionary.

    A module of its own, because the train pipeline traces what surrounds the collections.
    """

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        self._single = [f.key for f in layout.sequence_features if not f.is_bag]
        self._bags = [f.key for f in layout.sequence_features if f.is_bag]

    def forward(
        self, pooled: KeyedTensor, behaviours: Mapping[str, JaggedTensor] | None
    ) -> dict[str, Tensor]:
        """As SparseArch."""
        # By key, since their order depends on the sharding plan; and split at once, since the
        # backward of many single slices fills a tensor of full width for each.
        embeddings: dict[str, Tensor] = pooled.to_dict()
        if behaviours is not None:
            embeddings |= {key: behaviours[key].values() for key in self._single}
            embeddings |= {key: _sum(behaviours[key]) for key in self._bags}
        return embeddings


def _sum(bags: JaggedTensor) -> Tensor:
    return torch.segment_reduce(bags.values(), "sum", offsets=bags.offsets(), initial=0.0)


def _keys_by_table(features: tuple[SparseFeature, ...]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for feature in features:
        keys.setdefault(feature.table, []).append(feature.key)
    return keys
