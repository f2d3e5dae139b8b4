"""Why a model does not fit, and which changes make it fit: each is planned before it is named."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torchrec.distributed.planner.types import PartitionByType, ShardingOption

from cdp_torchrec.distributed.plans.config import TableShardingConfig
from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.planner import enumerate_options
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.change import constrained, plan_changed
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.workload import Workload

_MOST_SHARDS = 5
_WORTH_NAMING = 0.01
"""Share of the largest shard."""
_LARGE = 0.1
"""Share of a rank's free memory."""
_LARGEST_CLUSTER = 4096


@dataclass(frozen=True)
class Shortage:
    """The rank that lacks most when shards are spread by memory alone."""

    rank: int
    needed_bytes: float
    """By tables."""
    free_bytes: float
    """For tables: the device's memory without what is reserved."""
    largest: Sequence[tuple[str, str, float]]
    """Table, sharding type and bytes of the largest shards there."""
    large_tables: Sequence[str]
    """Entities that take a good part of the memory of any rank."""

    def lines(self, case: PlanCase) -> list[str]:
        """In words."""
        shards = ", ".join(f"{n} ({t}) {_gb(b)}" for n, t, b in self.largest)
        return [
            f"rank {self.rank} lacks {_gb(self.needed_bytes - self.free_bytes)}: its tables need "
            f"{_gb(self.needed_bytes)}, and of {_gb(case.hardware.memory_gb * GB)} "
            f"{_gb(self.free_bytes)} are free for tables",
            f"largest there: {shards}",
        ]


def find_shortage(problem: PlanProblem) -> Shortage:
    """Spread the tables as well as the strategy allows, and look at the fullest rank.

    Every table takes its option with the smallest largest shard, and large shards go first, each
    to the emptiest rank.

    Raises:
        ConfigError: the strategy is wrong for a table.
    """
    found = enumerate_options(problem)
    chosen: dict[str, ShardingOption] = {}
    for option in found.options:
        if option.name not in chosen or _largest(option) < _largest(chosen[option.name]):
            chosen[option.name] = option
    used = np.zeros(problem.world_size)
    held: list[list[tuple[str, str, float]]] = [[] for _ in used]
    for option in sorted(chosen.values(), key=_largest, reverse=True):
        for rank, size in _spread(option, used, problem.local_world_size):
            used[rank] += size
            held[rank].append((option.name, option.sharding_type, size))
    fullest = int(used.argmax())
    reserved = found.reservation.last_reserved_topology
    assert reserved is not None
    storage = reserved.devices[fullest].storage
    free = storage.hbm if problem.device == "cuda" else storage.ddr
    largest = sorted(held[fullest], key=lambda shard: -shard[2])[:_MOST_SHARDS]
    return Shortage(
        rank=fullest,
        needed_bytes=float(used[fullest]),
        free_bytes=free,
        largest=[shard for shard in largest if shard[2] > _WORTH_NAMING * largest[0][2]],
        large_tables=[
            table.entity
            for table in problem.tables
            if table.name in chosen and _largest(chosen[table.name]) > _LARGE * free
        ],
    )


def find_fixes(
    workload: Workload | OutsideWorkload, case: PlanCase, shortage: Shortage
) -> list[str]:
    """Changes with which there is a plan, cheapest first."""
    return list(_fixes(case, shortage, partial(plan_changed, workload)))


def _fixes(
    case: PlanCase, shortage: Shortage, fits: Callable[[PlanCase], PlanEstimate | None]
) -> Iterator[str]:
    culprits = shortage.large_tables
    named = ", ".join(culprits)
    by_rows = constrained(case, culprits, TableShardingConfig(types=("row_wise",)))
    if found := fits(by_rows):
        yield (
            f"split {named} by rows (sharding.tables.<entity>.types = ['row_wise']): {_fit(found)}"
        )
    ways = ((case, ""), (by_rows, f", and {named} by rows"))
    if case.optimizer.kind == "adam":
        adagrad = case.optimizer.model_copy(update={"kind": "rowwise_adagrad"})
        for changed, also in ways:
            if found := fits(replace(changed, optimizer=adagrad)):
                yield (
                    "optimizer.sparse.kind = 'rowwise_adagrad', one number per row in place of two "
                    f"per weight{also}: {_fit(found)}"
                )
                break
    if case.hardware.device == "cuda":
        cached = TableShardingConfig(types=("row_wise",), kernels=("fused_uvm_caching",))
        if found := fits(constrained(case, culprits, cached)):
            yield (
                f"{named} in host memory, by rows, with a cache on the GPU "
                f"(sharding.tables.<entity>.kernels = ['fused_uvm_caching']): {_fit(found)}"
            )
    for changed, also in ways:
        if found := _more_ranks(changed, shortage, fits):
            size = found.problem.world_size
            yield f"{size} ranks instead of {case.world_size}{also}: {_fit(found)}"
            break


def _more_ranks(
    case: PlanCase, shortage: Shortage, fits: Callable[[PlanCase], PlanEstimate | None]
) -> PlanEstimate | None:
    """The first doubling of the cluster that fits; beyond a node, whole nodes."""
    if case.sharding.sharding_group_size is not None:
        return None  # more ranks are more copies
    kinds = {kind for _, kind, _ in shortage.largest}
    if case.sharding.tables:
        size = 2 * case.world_size
    elif kinds & {"row_wise", "column_wise", "table_column_wise"}:
        lacking = max(2.0, shortage.needed_bytes / max(1.0, shortage.free_bytes))
        size = case.world_size * 2 ** math.floor(math.log2(lacking))
    else:
        return None  # more ranks make no shard of these types smaller
    per_node = case.hardware.ranks_per_node
    while size <= _LARGEST_CLUSTER:
        if size > per_node:
            size = per_node * math.ceil(size / per_node)
        if found := fits(replace(case, world_size=size)):
            return found
        size *= 2
    return None


def _spread(option: ShardingOption, used: np.ndarray, per_node: int) -> list[tuple[int, float]]:
    """Ranks for the shards of an option, given what the ranks already hold."""
    sizes = _sizes(option)
    if option.partition_by == PartitionByType.UNIFORM.value:
        return list(enumerate(sizes))
    if option.partition_by == PartitionByType.DEVICE.value:
        filled = used.copy()
        placed = []
        for size in sizes:
            rank = int(filled.argmin())
            filled[rank] += size
            placed.append((rank, size))
        return placed
    nodes = used.reshape(-1, per_node).max(1)
    placed = []
    for start in range(0, len(sizes), per_node):
        node = int(nodes.argmin())
        group = sizes[start : start + per_node]
        nodes[node] += max(group)
        placed += [(node * per_node + local, size) for local, size in enumerate(group)]
    return placed


def _sizes(option: ShardingOption) -> list[float]:
    # On a GPU the ddr of a table is host memory; on a CPU there is no hbm.
    sizes = []
    for shard in option.shards:
        assert shard.storage is not None
        sizes.append(float(shard.storage.hbm or shard.storage.ddr))
    return sizes


def _largest(option: ShardingOption) -> float:
    return max(_sizes(option))


def _fit(found: PlanEstimate) -> str:
    full = found.rank_bytes / found.capacity_bytes
    return f"fullest rank at {full:.0%}, embeddings {found.embedding_ms:.1f} ms a step"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB"
