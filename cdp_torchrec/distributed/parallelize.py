"""One function that turns a single-device task into a sharded one with its optimizer."""

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

from cdp_torchrec.distributed.config import OptimizerConfig
from cdp_torchrec.distributed.initial_rows import initial_rows
from cdp_torchrec.distributed.managed_collision import reset_evicted_rows
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer
from cdp_torchrec.distributed.plans.file import dump_plan
from cdp_torchrec.distributed.plans.job import plan_job
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.sharders import sharders
from cdp_torchrec.distributed.sharding_group import join_sharding_group
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

    @property
    def task(self) -> TrainTask:
        """What was sharded; its tables are this rank's share."""
        task = self.model.module
        assert isinstance(task, TrainTask)
        return task


def parallelize(
    problem: PlanProblem,
    optimizer: OptimizerConfig,
    *,
    device: torch.device,
    max_steps: int,
    embedding_init_std: float,
    seed: int,
) -> Parallelized:
    """Shard the tables, replicate the rest, make the optimizers; collective.

    Order matters: the in-backward optimizer before the plan (its state is sized), the plan before
    the model, the model before the optimizers of what is left.

    Args:
        problem: the task and its ranks, from `pose_problem`.
        optimizer: sparse and dense optimizer.
        device: where this rank computes.
        max_steps: steps of the whole training.
        embedding_init_std: standard deviation of the initial embeddings.
        seed: seed of the initial embeddings.

    Raises:
        ConfigError: no sharding plan fits, or the given one does not; on all ranks.
    """
    plan = plan_job(problem)
    plan_json = dump_plan(plan, problem)
    group = join_sharding_group(problem) if problem.num_replicas > 1 else None
    model = DistributedModelParallel(
        problem.model,
        env=None if group is None else group.env,
        device=device,
        plan=plan if group is None else group.place(plan, problem),
        sharders=sharders(problem.sharding),
        data_parallel_wrapper=_data_parallel_wrapper(),
    )
    look_up_one_by_one(model, device)
    for name, table in model.state_dict().items():
        if is_table(name):
            initialize_table(name, table, std=embedding_init_std, seed=seed)
    replicas = None if group is None else group.env.replica_pg
    scheduled = ScheduledOptimizer(model, optimizer, max_steps=max_steps, replicas=replicas)
    reset_evicted_rows(model, scheduled, std=embedding_init_std, seed=seed)
    return Parallelized(model, scheduled, plan, plan_json, problem.sharding.prefetch)


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
