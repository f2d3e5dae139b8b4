"""What a sharding plan is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from cdp_torchrec.distributed.optimizers import TableOptimizer, needs_dense_gradients
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import HardwareConfig
from cdp_torchrec.distributed.plans.tables import EmbeddingTable, find_tables


@dataclass(frozen=True)
class PlanProblem:
    """Tables, how they are looked up and updated, and the ranks that are to hold them.

    `pose_problem` makes that of a job; planning makes those of clusters that need not be there.
    """

    model: nn.Module
    """Its tables on the meta device, with the optimizer already fused into their backward pass
    where it can be (`apply_sparse_optimizer`): the planner sizes its state."""
    sharding: ShardingConfig
    """Strategy and constraints, or the file of a plan."""
    optimizer: TableOptimizer
    """Of the tables."""
    hardware: HardwareConfig
    """Of all ranks."""
    world_size: int
    """Ranks that hold one copy of the tables."""
    batch_size: int
    """Impressions per rank."""
    pooling_factors: Mapping[str, float]
    """Mean number of ids per impression, by key; 1 where unknown."""
    num_replicas: int = 1
    """Copies of the tables, each on `world_size` ranks of its own."""
    from_outside: bool = False
    """The model is not ours, so settings call its tables by their whole names."""

    @cached_property
    def tables(self) -> list[EmbeddingTable]:
        """All tables of the model, by name."""
        return find_tables(self.model, from_outside=self.from_outside)

    @property
    def device(self) -> str:
        """Where the ranks compute, cpu or cuda."""
        return self.hardware.device

    @property
    def local_world_size(self) -> int:
        """Ranks of a node."""
        return min(self.world_size, self.hardware.ranks_per_node)

    @property
    def has_dense_gradients(self) -> bool:
        """Whether tables get gradients, instead of an optimizer in their backward pass."""
        return needs_dense_gradients(self.optimizer, torch.device(self.device))
