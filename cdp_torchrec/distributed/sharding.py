"""Sharding plans: which rank holds which part of which table."""

from typing import Literal, cast

import torch
from pydantic import NonNegativeInt
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from cdp_torchrec.config import Config, ConfigError

Strategy = Literal["auto", "table_wise", "row_wise", "data_parallel"]


class ShardingConfig(Config):
    """Where tables live. The plan never changes the mathematics."""

    strategy: Strategy = "auto"
    """auto: TorchRec's planner chooses table-wise or row-wise for each large table; the other
    values force one sharding type for all large tables."""
    small_table_rows: NonNegativeInt = 2000
    """With several ranks, tables with at most this many rows are replicated (data-parallel)."""


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """The stock sharder without its filter that hides row-wise types on CPU, where they work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All sharding types."""
        return [sharding_type.value for sharding_type in ShardingType]


def sharders() -> list[ModuleSharder[nn.Module]]:
    """What shards the collections of a model."""
    both = (AllTypesSharder(), EmbeddingCollectionSharder())
    return [cast(ModuleSharder[nn.Module], sharder) for sharder in both]


def plan_sharding(
    model: nn.Module,
    config: ShardingConfig,
    *,
    device: torch.device,
    world_size: int,
    local_world_size: int,
    batch_size: int,
    dense_gradients: bool,
) -> ShardingPlan:
    """The sharding plan of a model, the same on every rank without communication.

    Args:
        model: model with its tables on the meta device; in-backward optimizers already applied,
            because the planner sizes their state.
        config: strategy.
        device: where the ranks compute.
        world_size: number of ranks.
        local_world_size: ranks on one node.
        batch_size: impressions per rank.
        dense_gradients: give tables gradients for an optimizer outside the backward pass.

    Raises:
        ConfigError: no plan fits.
    """
    tables: list[BaseEmbeddingConfig] = []
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            tables += module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection):
            tables += module.embedding_configs()
    constraints = {
        table.name: ParameterConstraints(
            sharding_types=[t.value for t in _allowed(config, table.num_embeddings, world_size)]
        )
        for table in tables
    }
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world_size,
            local_world_size=local_world_size,
            compute_device=device.type,
        ),
        batch_size=batch_size,
        constraints=constraints,
    )
    try:
        # Deterministic, so each rank plans for itself: a collective plan that fails on one rank
        # leaves the others waiting.
        plan = planner.plan(model, sharders())
    except PlannerError as error:
        raise ConfigError(
            f"sharding.strategy = '{config.strategy}': no plan for {world_size} ranks: {error}"
        ) from error
    if dense_gradients:
        for module_plan in plan.plan.values():
            assert isinstance(module_plan, EmbeddingModuleShardingPlan)
            for parameter in module_plan.values():
                parameter.compute_kernel = EmbeddingComputeKernel.DENSE.value
    return plan


def _allowed(config: ShardingConfig, num_embeddings: int, world_size: int) -> list[ShardingType]:
    # On one rank there is nothing to replicate, and the fused optimizer is faster.
    if num_embeddings <= config.small_table_rows and world_size > 1:
        return [ShardingType.DATA_PARALLEL]
    if config.strategy == "auto":
        return [ShardingType.TABLE_WISE, ShardingType.ROW_WISE]
    return [ShardingType(config.strategy)]


def describe_plan(plan: ShardingPlan) -> dict[str, dict[str, object]]:
    """Table name -> sharding type, compute kernel, ranks and shards, ready for JSON."""
    described: dict[str, dict[str, object]] = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        for name, parameter in module_plan.items():
            spec = parameter.sharding_spec
            shards = [] if spec is None else spec.shards  # pyrefly: ignore[missing-attribute]
            described[name] = {
                "sharding_type": parameter.sharding_type,
                "compute_kernel": parameter.compute_kernel,
                "ranks": parameter.ranks,
                "shards": [
                    {"offsets": list(s.shard_offsets), "sizes": list(s.shard_sizes)} for s in shards
                ],
            }
    return described
