"""Embedding lookups of all id features: pooled ones, and behaviours that stay apart."""

# B impressions, L behaviours, D embedding dim

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from cdp_torchrec.data.layout import FeatureLayout, SparseFeature
from cdp_torchrec.model.managed_collision import manage_collisions

_META = torch.device("meta")
TABLE_MARKS = (".embedding_bags.", ".embeddings.")
"""Parts of the names of table parameters in the two kinds of collections."""


def table_name(entity: str) -> str:
    """Name of the embedding table of an entity."""
    return f"t_{entity}"


def entity_of(table: str) -> str:
    """Entity of an embedding table, given the table's name."""
    return table.removeprefix("t_")


def table_of(parameter: str) -> str:
    """Name of the table that a parameter is: `...embedding_bags.t_item.weight` -> `t_item`."""
    return parameter.split(".")[-2]


def is_table(parameter: str) -> bool:
    """Whether a parameter of a model is an embedding table."""
    return any(mark in parameter for mark in TABLE_MARKS)


class SparseArch(nn.Module):
    """Embeddings by key: sums of bags [B, D], and single behaviours [L, D].

    A table lives in one collection. Those that sequences read are in an EmbeddingCollection, with
    all their features, so that a behaviour and the target item share their embedding; all others
    are in an EmbeddingBagCollection. Tables with managed collision are in collections that map ids
    to rows first. All bags pool by SUM: means are divided in our own code, because a mean inside a
    collection is wrong when a plan mixes row-wise and other tables.
    """

    def __init__(self, layout: FeatureLayout, *, embedding_dim: int) -> None:
        """Declare the tables on the meta device; sharding materialises them.

        Args:
            layout: tables and keys.
            embedding_dim: width D of every table.
        """
        super().__init__()
        self.embedding_bag_collection = _bags(layout, embedding_dim, managed=False)
        self.embedding_collection = _singles(layout, embedding_dim, managed=False)
        self.managed_embedding_bag_collection = None
        self.managed_embedding_collection = None
        managed = {
            table_name(entity): table.managed_collision
            for entity, table in layout.tables.items()
            if table.managed_collision is not None
        }
        bags = _bags(layout, embedding_dim, managed=True)
        if bags is not None:
            self.managed_embedding_bag_collection = ManagedCollisionEmbeddingBagCollection(
                bags, manage_collisions(bags.embedding_bag_configs(), managed)
            )
        singles = _singles(layout, embedding_dim, managed=True)
        if singles is not None:
            self.managed_embedding_collection = ManagedCollisionEmbeddingCollection(
                singles, manage_collisions(singles.embedding_configs(), managed)
            )
        self.by_key = EmbeddingsByKey(layout)

    def forward(
        self, sparse: KeyedJaggedTensor, sequence: KeyedJaggedTensor | None
    ) -> dict[str, Tensor]:
        """Sum of the embeddings of each bag, and the embedding of each behaviour, by key.

        Args:
            sparse: ids of pooled lookups, stride B.
            sequence: ids of the tables that sequences read, stride B; None without such tables.
        """
        pooled, behaviours = [], []
        if self.embedding_bag_collection is not None:
            pooled.append(self.embedding_bag_collection(sparse))
        if self.managed_embedding_bag_collection is not None:
            pooled.append(self.managed_embedding_bag_collection(sparse)[0])
        if self.embedding_collection is not None:
            behaviours.append(self.embedding_collection(sequence))
        if self.managed_embedding_collection is not None:
            behaviours.append(self.managed_embedding_collection(sequence)[0])
        return self.by_key(pooled, behaviours)


class EmbeddingsByKey(nn.Module):
    """Results of all collections in one dictionary.

    A module of its own, because the train pipeline traces what surrounds the collections.
    """

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        self._single = {f.key for f in layout.sequence_features if not f.is_bag}

    def forward(
        self,
        pooled: Sequence[KeyedTensor],
        behaviours: Sequence[Mapping[str, JaggedTensor]],
    ) -> dict[str, Tensor]:
        """As SparseArch."""
        # By key, since their order depends on the sharding plan; and split at once, since the
        # backward of many single slices fills a tensor of full width for each.
        embeddings: dict[str, Tensor] = {}
        for collection in pooled:
            embeddings |= collection.to_dict()
        for collection in behaviours:
            embeddings |= {
                key: ids.values() if key in self._single else _sum(ids)
                for key, ids in collection.items()
            }
        return embeddings


def _sum(bags: JaggedTensor) -> Tensor:
    return torch.segment_reduce(bags.values(), "sum", offsets=bags.offsets(), initial=0.0)


def _bags(
    layout: FeatureLayout, embedding_dim: int, *, managed: bool
) -> EmbeddingBagCollection | None:
    tables = [
        EmbeddingBagConfig(
            name=table_name(entity),
            embedding_dim=embedding_dim,
            num_embeddings=layout.tables[entity].num_embeddings,
            feature_names=keys,
            pooling=PoolingType.SUM,
        )
        for entity, keys in _keys_by_table(layout, layout.pooled_features, managed=managed)
    ]
    return EmbeddingBagCollection(device=_META, tables=tables) if tables else None


def _singles(
    layout: FeatureLayout, embedding_dim: int, *, managed: bool
) -> EmbeddingCollection | None:
    tables = [
        EmbeddingConfig(
            name=table_name(entity),
            embedding_dim=embedding_dim,
            num_embeddings=layout.tables[entity].num_embeddings,
            feature_names=keys,
        )
        for entity, keys in _keys_by_table(layout, layout.sequence_features, managed=managed)
    ]
    return EmbeddingCollection(device=_META, tables=tables) if tables else None


def _keys_by_table(
    layout: FeatureLayout, features: Sequence[SparseFeature], *, managed: bool
) -> list[tuple[str, list[str]]]:
    keys: dict[str, list[str]] = {}
    for feature in features:
        if (layout.tables[feature.table].managed_collision is not None) == managed:
            keys.setdefault(feature.table, []).append(feature.key)
    return list(keys.items())
