"""One function that turns a single-device task into a sharded one with its optimizer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import OptimizerConfig, SparseOptimizerConfig
from cdp_torchrec.distributed.initial_rows import initial_rows
from cdp_torchrec.distributed.managed_collision import reset_evicted_rows
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer, apply_sparse_optimizer
from cdp_torchrec.distributed.pipeline import check_prefetch
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.file import dump_plan, read_plan
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.job import local_hardware
from cdp_torchrec.distributed.plans.planner import find_tables, sharders
from cdp_torchrec.distributed.plans.search import plan_sharding
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.distributed.unpooled import look_up_one_by_one
from cdp_torchrec.model.sparse_arch import is_table
from cdp_torchrec.model.train_task import TrainTask

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Parallelized:
    """A task on all ranks."""

    model: DistributedModelParallel
    optimizer: ScheduledOptimizer
    plan: ShardingPlan
    plan_json: str
    """The plan as a plan file has it."""
    prefetch: bool
    """Whether the caches of GPUs are filled one batch ahead."""


def parallelize(
    task: TrainTask,
    *,
    sharding: ShardingConfig,
    optimizer: OptimizerConfig,
    device: torch.device,
    batch_size: int,
    pooling_factors: Mapping[str, float],
    max_steps: int,
    embedding_init_std: float,
    seed: int,
) -> Parallelized:
    """Shard the tables, replicate the rest, make the optimizers.

    Order matters: the in-backward optimizer before the plan (its state is sized), the plan before
    the model, the model before the optimizers of what is left.

    Args:
        task: model and losses, tables on the meta device.
        sharding: the plan's strategy, or its file.
        optimizer: sparse and dense optimizer.
        device: where this rank computes.
        batch_size: impressions per rank.
        pooling_factors: mean number of ids per impression, by key, for the planner.
        max_steps: steps of the whole training.
        embedding_init_std: standard deviation of the initial embeddings.
        seed: seed of the initial embeddings.

    Raises:
        ConfigError: no sharding plan fits, or the given one does not; on all ranks.
    """
    apply_sparse_optimizer(task.model.sparse_arch, optimizer.sparse, device)
    plan = from_rank_zero(
        lambda: _choose_plan(
            task,
            sharding,
            optimizer.sparse,
            device=device,
            batch_size=batch_size,
            pooling_factors=pooling_factors,
        ),
        purpose="make the plan",
    )
    plan_json = dump_plan(plan, find_tables(task), **_ranks(), device=device.type)
    if sharding.prefetch:
        check_prefetch(plan, device.type)
    model = DistributedModelParallel(
        task,
        device=device,
        plan=plan,
        sharders=sharders(sharding),
        data_parallel_wrapper=_data_parallel_wrapper(),
    )
    look_up_one_by_one(model, device)
    for name, table in model.state_dict().items():
        if is_table(name):
            initialize_table(name, table, std=embedding_init_std, seed=seed)
    scheduled = ScheduledOptimizer(model, optimizer, max_steps=max_steps)
    reset_evicted_rows(model, scheduled, std=embedding_init_std, seed=seed)
    return Parallelized(model, scheduled, plan, plan_json, sharding.prefetch)


def _choose_plan(
    task: TrainTask,
    sharding: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    device: torch.device,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> ShardingPlan:
    """The plan of the file if there is one, else what the planner finds."""
    ranks = _ranks()
    if sharding.plan is not None:
        return read_plan(
            sharding.plan, find_tables(task), optimizer=optimizer, **ranks, device=device.type
        )
    hardware = local_hardware(device, ranks["local_world_size"])
    if sharding.hardware is not None:
        named = load_hardware(sharding.hardware)
        if named.device != device.type:
            raise ConfigError(
                f"sharding.hardware = '{sharding.hardware}': has device '{named.device}', but the "
                f"ranks compute on '{device.type}'"
            )
        hardware = named.model_copy(update={"ranks_per_node": ranks["local_world_size"]})
    return plan_sharding(
        task,
        sharding,
        optimizer,
        topology=make_topology(hardware, ranks["world_size"]),
        batch_size=batch_size,
        pooling_factors=pooling_factors,
    )


def _ranks() -> dict[str, int]:
    return {
        "world_size": dist.get_world_size(),
        "local_world_size": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    }


def _data_parallel_wrapper() -> DataParallelWrapper:
    """What replicates the dense part; a single rank has nobody to average gradients with."""
    if dist.get_world_size() == 1:
        return _OneRank()
    # Static-graph buckets differ in the first iteration, and with them the last bit of the losses
    # after a resume.
    return DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=True)


class _OneRank(DataParallelWrapper):
    """Leaves the dense part as it is."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        dmp._dmp_wrapped_module = dmp._dmp_wrapped_module.to(device)


@torch.no_grad()
def initialize_table(name: str, table: Tensor | ShardedTensor, *, std: float, seed: int) -> None:
    """Fill a table with normal values that depend on name, row and column only, not on the plan.

    Args:
        name: parameter name; its digest separates the tables.
        table: the table, or this rank's shards of it.
        std: standard deviation.
        seed: another seed, other values.
    """
    if isinstance(table, ShardedTensor):
        width = table.size(1)
        shards = [(s.tensor, *s.metadata.shard_offsets) for s in table.local_shards()]
    else:
        width = table.shape[1]
        shards = [(table, 0, 0)]
    for tensor, first_row, first_column in shards:
        for start in range(0, tensor.shape[0], _ROWS_AT_ONCE):
            part = tensor[start : start + _ROWS_AT_ONCE]
            rows = first_row + start + torch.arange(len(part), device=tensor.device)
            values = initial_rows(name, rows, width, std=std, seed=seed)
            part.copy_(values[:, first_column : first_column + tensor.shape[1]])
