"""Tables as plans see them: those of a model, and their parts in a plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import BaseManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionModule

from cdp_torchrec.distributed.plans.format import ShardEntry
from cdp_torchrec.model.sparse_arch import entity_of

OPTIMIZER_MARK = "_optimizer_classes"
"""Where apply_optimizer_in_backward leaves the optimizer of a table."""


@dataclass(frozen=True)
class EmbeddingTable:
    """A table of a model, as plans see it."""

    name: str
    entity: str
    """What settings call it: its id space in the dataset, or `name` in a model from outside."""
    module: str
    """Path of its collection in the model."""
    num_embeddings: int
    embedding_dim: int
    features: tuple[str, ...]
    """Keys that are looked up in it."""
    is_pooled: bool
    """In an EmbeddingBagCollection, instead of the collection that sequences read."""
    element_bytes: int = 4
    """Of one weight."""
    buckets: int | None = None
    """Parts of its map from ids to rows, with managed collision."""


def find_tables(model: nn.Module, *, from_outside: bool = False) -> list[EmbeddingTable]:
    """All tables of a model, by name.

    Args:
        model: holds them.
        from_outside: it is not ours, so its tables are called what they are called.
    """
    found = []
    buckets: dict[str, int] = {}
    inner: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseManagedCollisionEmbeddingCollection):
            # Plans name the module that maps the ids, not the tables inside it.
            inner[module._embedding_module] = path
            managed = module._managed_collision_collection._managed_collision_modules
            for table, collisions in managed.items():
                buckets[table] = cast(ManagedCollisionModule, collisions).buckets()
        if isinstance(module, EmbeddingBagCollection):
            configs = module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection):
            configs = module.embedding_configs()
        else:
            continue
        found += [
            EmbeddingTable(
                name=config.name,
                entity=config.name if from_outside else entity_of(config.name),
                module=inner.get(module, path),
                num_embeddings=config.num_embeddings,
                embedding_dim=config.embedding_dim,
                features=tuple(config.feature_names),
                is_pooled=isinstance(module, EmbeddingBagCollection),
                element_bytes=DATA_TYPE_NUM_BITS[config.data_type] // 8,
                buckets=buckets.get(config.name),
            )
            for config in configs
        ]
    return sorted(found, key=lambda table: table.name)


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights of all tables of a model that is not sharded."""
    collections = (EmbeddingBagCollection, EmbeddingCollection)
    found = (m.parameters() for m in model.modules() if isinstance(m, collections))
    return [parameter for parameters in found for parameter in parameters]


def num_dense_parameters(model: nn.Module) -> int:
    """Numbers in all other parameters, whatever their names are."""
    tables = set(table_parameters(model))
    return sum(p.numel() for p in model.parameters() if p not in tables)


@contextmanager
def optimizer_state_sized(model: nn.Module) -> Iterator[None]:
    """Let the planner count the state of Adam where it is not fused into the backward pass.

    The planner looks for the optimizer class on the table, where only fused ones leave it.
    """
    exposed = [p for p in table_parameters(model) if not hasattr(p, OPTIMIZER_MARK)]
    for parameter in exposed:
        setattr(parameter, OPTIMIZER_MARK, [torch.optim.Adam])
    try:
        yield
    finally:
        for parameter in exposed:
            delattr(parameter, OPTIMIZER_MARK)


def shardings_of(plan: ShardingPlan) -> dict[str, ParameterSharding]:
    """How each table is sharded, by its name."""
    shardings: dict[str, ParameterSharding] = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        shardings |= module_plan
    return shardings


def shards_of(sharding: ParameterSharding) -> tuple[ShardEntry, ...]:
    """The parts of a table in the plan's order; none if every rank holds the whole table."""
    spec = sharding.sharding_spec
    if spec is None:
        return ()
    return tuple(
        ShardEntry(
            rank=shard.placement.rank(),
            offsets=tuple(shard.shard_offsets),
            sizes=tuple(shard.shard_sizes),
        )
        for shard in spec.shards  # pyrefly: ignore[missing-attribute]
    )
