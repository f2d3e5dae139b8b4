"""2-D parallelism: groups of ranks, each of which holds all tables.

TorchRec's DMPCollection makes such groups on GPUs only, and averages weights and optimizer state
of the replicas every so many steps, which is another optimizer than that of one copy (the mean of
two steps of Adam is no step of Adam). Here the gradients are averaged, before the one step that
all replicas then take alike.
"""

import copy
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torch.distributed.device_mesh import init_device_mesh
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import ShardingEnv2D, ShardingPlan

from cdp_torchrec.distributed.plans.format import ShardEntry
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import shardings_of, shards_of


@dataclass(frozen=True)
class ShardingGroup:
    """The ranks that hold one copy of the tables together, and this rank among them."""

    env: ShardingEnv2D
    """The group, and the ranks of all groups that hold the same shards as this one."""
    first_rank: int
    """Of the group, among all ranks."""

    def place(self, plan: ShardingPlan, problem: PlanProblem) -> ShardingPlan:
        """A plan for any group, with its shards on the ranks of this one.

        Args:
            plan: its shards lie on the ranks that a group counts from 0.
            problem: which it solves.
        """
        placed = copy.deepcopy(plan)
        for parameter in shardings_of(placed).values():
            # A shard is placed by its number among all ranks, and looked up by that in the group,
            # which is what parameter.ranks still says.
            if parameter.sharding_spec is not None:
                parameter.sharding_spec = EnumerableShardingSpec(
                    [self._placed(shard, problem) for shard in shards_of(parameter)]
                )
        return placed

    def _placed(self, shard: ShardEntry, problem: PlanProblem) -> ShardMetadata:
        rank = self.first_rank + shard.rank
        where = placement(problem.device, rank, problem.hardware.ranks_per_node)
        return ShardMetadata(list(shard.offsets), list(shard.sizes), where)


def join_sharding_group(problem: PlanProblem) -> ShardingGroup:
    """Split the ranks into groups of neighbours; collective.

    Args:
        problem: with several replicas.
    """
    shape = (problem.num_replicas, problem.world_size)
    mesh = init_device_mesh(problem.device, shape, mesh_dim_names=("replicas", "shards"))
    assert dist.group.WORLD is not None
    env = ShardingEnv2D(
        sharding_pg=mesh.get_group("shards"),
        replica_pg=mesh.get_group("replicas"),
        global_pg=dist.group.WORLD,
        device_mesh=mesh,
        use_inter_host_allreduce=True,  # groups of neighbours
    )
    env.output_dtensor = False  # a checkpoint has the same kind of tensors under every plan
    return ShardingGroup(env, first_rank=dist.get_rank() // env.world_size * env.world_size)
