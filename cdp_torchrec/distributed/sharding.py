"""Sharding plans: which rank holds which part of which table."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.constraints import table_constraints
from cdp_torchrec.distributed.optimizers import SparseOptimizerConfig, needs_dense_gradients
from cdp_torchrec.distributed.planner import (
    find_tables,
    make_planner,
    optimizer_state_sized,
    sharders,
)
from cdp_torchrec.distributed.sharding_config import ShardingConfig


def plan_sharding(
    model: nn.Module,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    topology: Topology,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> ShardingPlan:
    """The sharding plan of a model, without a process group.

    Args:
        model: model with its tables on the meta device; in-backward optimizers already applied,
            because the planner sizes their state.
        config: strategy and constraints.
        optimizer: of the tables.
        topology: the cluster.
        batch_size: impressions per rank.
        pooling_factors: mean number of ids per impression, by key; 1 where unknown.

    Raises:
        ConfigError: the configuration is wrong for a table, or no plan fits.
    """
    constraints = table_constraints(
        find_tables(model),
        config,
        optimizer,
        device=topology.compute_device,
        world_size=topology.world_size,
        pooling_factors=pooling_factors,
    )
    planner = make_planner(
        model,
        constraints,
        topology=topology,
        batch_size=batch_size,
        search_seconds=config.search_seconds,
    )
    try:
        with optimizer_state_sized(model):
            plan = planner.plan(model, sharders())
    except PlannerError as error:
        raise ConfigError(
            f"sharding.strategy = '{config.strategy}': no plan for {topology.world_size} ranks: "
            f"{error}"
        ) from error
    if needs_dense_gradients(optimizer, torch.device(topology.compute_device)):
        for module_plan in plan.plan.values():
            assert isinstance(module_plan, EmbeddingModuleShardingPlan)
            for parameter in module_plan.values():
                parameter.compute_kernel = EmbeddingComputeKernel.DENSE.value
    return plan


def from_rank_zero(make_plan: Callable[[], ShardingPlan]) -> ShardingPlan:
    """The plan that rank 0 makes, on all ranks; collective.

    Args:
        make_plan: called on rank 0 only, because planners need not agree, and a search that is
            bounded in time least of all.

    Raises:
        ConfigError: rank 0 raised it; on all ranks.
    """
    shared: list[ShardingPlan | ConfigError | None] = [None]
    if dist.get_rank() == 0:
        try:
            shared[0] = make_plan()
        except ConfigError as error:
            shared[0] = error
    dist.broadcast_object_list(shared)
    (plan,) = shared
    if isinstance(plan, ConfigError):
        raise plan
    assert plan is not None
    return plan


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
