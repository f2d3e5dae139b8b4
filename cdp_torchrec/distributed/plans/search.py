"""Sharding plans: which rank holds which part of which table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import needs_dense_gradients
from cdp_torchrec.distributed.pipeline import check_prefetch
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.constraints import table_constraints
from cdp_torchrec.distributed.plans.failure import explain_failure
from cdp_torchrec.distributed.plans.planner import (
    EmbeddingTable,
    find_tables,
    make_planner,
    optimizer_state_sized,
    sharders,
)


@dataclass(frozen=True)
class SearchedPlan:
    """What a search has found."""

    plan: ShardingPlan
    options: tuple[ShardingOption, ...]
    """One for each table, with the planner's estimates; their shards know their ranks."""
    planner: EmbeddingShardingPlanner
    """What searched; it knows how much memory it has reserved."""
    num_proposals: int
    seconds: float


def plan_sharding(
    model: nn.Module,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    topology: Topology,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> ShardingPlan:
    """The sharding plan of a model; arguments and errors are those of `search_plan`."""
    return search_plan(
        model,
        config,
        optimizer,
        topology=topology,
        batch_size=batch_size,
        pooling_factors=pooling_factors,
    ).plan


def search_plan(
    model: nn.Module,
    config: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    topology: Topology,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> SearchedPlan:
    """The sharding plan of a model with its estimates, without a process group.

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
    tables = find_tables(model)
    constraints = table_constraints(
        tables,
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
        prefetch=config.prefetch,
    )
    start = time.perf_counter()
    try:
        with optimizer_state_sized(model):
            plan = planner.plan(model, sharders(config))
    except PlannerError as error:
        reason = explain_failure(error, planner, tables, optimizer)
        raise ConfigError(f"sharding.strategy = '{config.strategy}': {reason}") from error
    if needs_dense_gradients(optimizer, torch.device(topology.compute_device)):
        for module_plan in plan.plan.values():
            assert isinstance(module_plan, EmbeddingModuleShardingPlan)
            for parameter in module_plan.values():
                parameter.compute_kernel = EmbeddingComputeKernel.DENSE.value
    _check_complete(plan, tables)
    if config.prefetch:
        check_prefetch(plan, topology.compute_device)
    return SearchedPlan(
        plan=plan,
        options=tuple(planner._best_plan or ()),
        planner=planner,
        num_proposals=planner._num_proposals,
        seconds=time.perf_counter() - start,
    )


def _check_complete(plan: ShardingPlan, tables: Sequence[EmbeddingTable]) -> None:
    """TorchRec leaves a table that is not in the plan unsharded, and says nothing."""
    missing = [
        table.name
        for table in tables
        if table.module not in plan.plan or table.name not in plan.plan[table.module]  # pyrefly: ignore[not-iterable]
    ]
    if missing:
        raise RuntimeError(f"TorchRec's planner has left out the tables {', '.join(missing)}")
