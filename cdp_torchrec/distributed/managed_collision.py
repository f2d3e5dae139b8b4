"""Tables with managed collision on several ranks: how their rows change owners."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.mc_embedding_modules import (
    BaseShardedManagedCollisionEmbeddingCollection,
)
from torchrec.optim.keyed import KeyedOptimizer

from cdp_torchrec.distributed.initial_rows import initial_rows
from cdp_torchrec.model.managed_collision import BucketedCollisionModule
from cdp_torchrec.model.sparse_arch import is_table, table_of


def reset_evicted_rows(
    model: nn.Module, optimizer: KeyedOptimizer, *, std: float, seed: int
) -> None:
    """Make a row that changes owners start as it did at first, without optimizer state.

    TorchRec calls fbgemm::reset_weight_momentum here, which has no CPU kernel, knows the state of
    row-wise Adagrad only (Adam's moments would pass on to the new owner), and leaves weights that
    depend on the rank's random numbers.

    Args:
        model: the sharded model, changed in place.
        optimizer: of the model.
        std: standard deviation of the initial embeddings.
        seed: seed of the initial embeddings.
    """
    managed = list(_managed(model))
    if not managed:
        return  # other tables may be so small that a rank has no row and no state of them
    tables = _local_tables(model, optimizer)

    @torch.no_grad()
    def reset(evictions_per_table: dict[str, Tensor | None]) -> None:
        for table, rows in evictions_per_table.items():
            if rows is not None:
                tables[table].reset(rows, std=std, seed=seed)

    for module in managed:
        module._evict = reset


def assign_counted_rows(model: nn.Module) -> None:
    """Give rows to the ids counted since the last assignment, however few steps that was.

    Counts between two assignments are in no checkpoint; after this call there are none.

    Args:
        model: the sharded model, between two steps.
    """
    for module in _managed(model):
        collection = module._managed_collision_collection
        for table in collection._managed_collision_modules.values():
            assert isinstance(table, BucketedCollisionModule)
            table.assign()
        module._evict(collection.evict())


@dataclass(frozen=True)
class _LocalTable:
    """This rank's rows of a table."""

    parameter: str
    weights: Tensor
    first_row: int
    state: list[Tensor]
    """Of the optimizer, one entry per row of `weights`."""

    def reset(self, rows: Tensor, *, std: float, seed: int) -> None:
        width = self.weights.shape[1]
        self.weights[rows] = initial_rows(
            self.parameter, self.first_row + rows, width, std=std, seed=seed
        )
        for values in self.state:
            values[rows] = 0


def _local_tables(model: nn.Module, optimizer: KeyedOptimizer) -> dict[str, _LocalTable]:
    """This rank's part of each sharded table, by table name."""
    state = {table_of(name): optimizer.state[p] for name, p in optimizer.params.items()}
    tables = {}
    for name, weights in model.state_dict().items():
        if is_table(name) and isinstance(weights, ShardedTensor) and weights.local_shards():
            shard = weights.local_shards()[0]
            moments = state.get(table_of(name), {}).values()
            tables[table_of(name)] = _LocalTable(
                parameter=name,
                weights=shard.tensor,
                first_row=shard.metadata.shard_offsets[0],
                state=[moment.local_shards()[0].tensor for moment in moments],
            )
    return tables


def _managed(model: nn.Module) -> Iterator[BaseShardedManagedCollisionEmbeddingCollection]:
    for module in model.modules():
        if isinstance(module, BaseShardedManagedCollisionEmbeddingCollection):
            yield module
