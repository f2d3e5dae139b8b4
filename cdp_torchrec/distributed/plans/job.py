"""The plan of a job: what its ranks are, and one plan for all of them."""

import logging
import os
import re
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import (
    apply_sparse_optimizer,
    needs_dense_gradients,
)
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import (
    GB,
    HardwareConfig,
    hardware_names,
    load_hardware,
)
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.model.train_task import TrainTask

logger = logging.getLogger(__name__)


def pose_problem(
    task: TrainTask,
    sharding: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    *,
    device: torch.device,
    batch_size: int,
    pooling_factors: Mapping[str, float],
) -> PlanProblem:
    """What the ranks of this job need a plan for; collective.

    Args:
        task: model and losses, tables on the meta device; the optimizer is fused into their
            backward pass where it can be.
        sharding: strategy and constraints, or the file of a plan.
        optimizer: of the tables.
        device: where this rank computes.
        batch_size: impressions per rank.
        pooling_factors: mean number of ids per impression, by key.

    Raises:
        ConfigError: the named hardware is unknown, or computes elsewhere; the ranks or the
            optimizer have no replicas of such a size; on all ranks.
    """
    world_size = dist.get_world_size()
    num_replicas = count_replicas(sharding, optimizer, device, world_size=world_size)
    apply_sparse_optimizer(task.model.sparse_arch, optimizer, device)
    return PlanProblem(
        model=task,
        sharding=sharding,
        optimizer=optimizer,
        hardware=from_rank_zero(
            lambda: _hardware(sharding.hardware, device), purpose="read the hardware"
        ),
        world_size=world_size // num_replicas,
        batch_size=batch_size,
        pooling_factors=pooling_factors,
        num_replicas=num_replicas,
    )


def count_replicas(
    sharding: ShardingConfig,
    optimizer: SparseOptimizerConfig,
    device: torch.device,
    *,
    world_size: int,
) -> int:
    """Copies of the tables that a job of so many ranks holds.

    Raises:
        ConfigError: groups of such a size do not fill the ranks, or their gradients cannot be
            averaged.
    """
    size = sharding.sharding_group_size
    if size is None or size == world_size:
        return 1
    if mistakes := sharding.group_mistakes(world_size):
        raise ConfigError.of(mistakes)
    if not needs_dense_gradients(optimizer, device):
        raise ConfigError(
            f"sharding.sharding_group_size = {size} and optimizer.sparse.kind = '{optimizer.kind}' "
            f"on {device.type} do not go together: the update is fused into the backward pass, and "
            "leaves no gradient to average between replicas; averaging their weights, as "
            "TorchRec's DMPCollection does, is another optimizer. It runs with adam on CPUs; "
            "launch/plan_sharding.py plans it for all"
        )
    return world_size // size


def plan_job(problem: PlanProblem) -> ShardingPlan:
    """The plan that rank 0 reads or finds, on all ranks; collective.

    Planners of several ranks need not agree, and a search that is bounded in time least of all.

    Raises:
        ConfigError: no plan fits, or the given one does not; on all ranks.
    """
    return from_rank_zero(lambda: choose_plan(problem), purpose="make the plan")


def _hardware(name: str | None, device: torch.device) -> HardwareConfig:
    """Of the ranks: as named, else what this machine shows of itself."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name is None:
        return _local_hardware(device, ranks_here)
    named = load_hardware(name)
    if named.device != device.type:
        raise ConfigError(
            f"sharding.hardware = '{name}': has device '{named.device}', but the ranks compute on "
            f"'{device.type}'"
        )
    return named.model_copy(update={"ranks_per_node": ranks_here})


def _local_hardware(device: torch.device, ranks_here: int) -> HardwareConfig:
    """The nearest named hardware, with the memory of this machine, which its ranks share."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB / ranks_here
    found = {"name": "local", "ranks_per_node": ranks_here, "host_memory_gb": host}
    if device.type == "cpu":
        return load_hardware("cpu").model_copy(update=found)
    memory = torch.cuda.get_device_properties(device).total_memory / GB
    named = nearest_gpu(torch.cuda.get_device_name(device), memory)
    return named.model_copy(update={**found, "device_memory_gb": memory})


def nearest_gpu(name: str, memory_gb: float) -> HardwareConfig:
    """The named hardware of a GPU; of an unknown one the A100, with a warning.

    Args:
        name: as CUDA says it, such as "NVIDIA H100 80GB HBM3".
        memory_gb: by which those of one model differ.
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    known = [load_hardware(each) for each in hardware_names() if each.split("-")[0] in words]
    if known:
        return min(known, key=lambda each: abs(each.memory_gb - memory_gb))
    if is_rank_zero():
        logger.warning(
            "%s is unknown: plans are estimated with the bandwidths of an A100. Measure its own by "
            "`benchmark plans`, and name them by sharding.hardware.",
            name,
        )
    return load_hardware("a100-80")
