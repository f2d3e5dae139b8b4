"""What it costs to keep several copies of the tables alike (2-D parallelism)."""

from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import CollectiveType

from cdp_torchrec.distributed.plans.hardware import GB, HardwareConfig
from cdp_torchrec.distributed.plans.topology import link_of_collective
from cdp_torchrec.planning.estimate import PlanEstimate


@dataclass(frozen=True)
class ReplicaSync:
    """How the replicas of a plan are kept alike."""

    num_replicas: int
    """Copies of the tables."""
    group_size: int
    """Ranks that hold one of them."""
    num_bytes: float
    """That the fullest rank averages with those that hold the same shards: gradients of its tables,
    or their weights and optimizer state."""
    every_steps: int
    averages_weights: bool
    """As TorchRec's DMPCollection does; then what is trained is no longer what one copy would be.
    """
    hardware: HardwareConfig

    @property
    def step_ms(self) -> float:
        """Mean time that a step takes longer, of a ring over the replicas."""
        per_node = max(1, self.hardware.ranks_per_node // self.group_size)
        hardware = self.hardware.model_copy(update={"ranks_per_node": per_node})
        link = link_of_collective(hardware, self.num_replicas, CollectiveType.ALL_REDUCE)
        sent = 2 * (self.num_replicas - 1) / self.num_replicas * self.num_bytes
        fixed = self.hardware.collective_ms(2 * (self.num_replicas - 1))
        return (sent / link + fixed) / self.every_steps

    def lines(self) -> list[str]:
        """In words."""
        what = (
            f"{self.num_replicas} copies of the tables, on {self.group_size} ranks each; tables "
            "and ranks below are those of one"
        )
        size = f"{self.num_bytes / GB:.3g} GB on the fullest rank"
        if not self.averages_weights:
            return [
                what,
                f"their gradients, {size}, are averaged in every step, which takes "
                f"{self.step_ms:.3g} ms; the losses are those of one copy",
            ]
        return [
            what,
            f"NOT THE MATHEMATICS OF ONE COPY: TorchRec's DMPCollection averages weights and "
            f"optimizer state, {size}, every {self.every_steps} steps, {self.step_ms:.3g} ms a "
            "step; the optimizer of every copy sees its part of the batch only; training refuses "
            "it",
        ]


def sync_of(found: PlanEstimate, sync_steps: int | None) -> ReplicaSync | None:
    """How the replicas are kept alike; None if there is one copy.

    Args:
        found: the plan of one copy.
        sync_steps: between two averages of the weights, where the optimizer leaves no gradients.
    """
    problem = found.problem
    if problem.num_replicas == 1:
        return None
    averages_weights = not problem.has_dense_gradients
    num_bytes = np.zeros(problem.world_size)
    for table in found.tables:
        if table.sharding_type == "data_parallel":
            continue  # reduced over all ranks, with the dense part
        for shard in table.shards:
            state = shard.optimizer_bytes if averages_weights else 0
            # Of a table in host memory all is there; what the device has of it is its cache.
            num_bytes[shard.rank] += shard.host_bytes or shard.weight_bytes + state
    return ReplicaSync(
        num_replicas=problem.num_replicas,
        group_size=problem.world_size,
        num_bytes=float(num_bytes.max()),
        every_steps=(sync_steps or 1) if averages_weights else 1,
        averages_weights=averages_weights,
        hardware=problem.hardware,
    )
