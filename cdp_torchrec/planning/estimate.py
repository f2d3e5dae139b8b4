"""What a plan is expected to need: memory and time of every shard, table and rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.distributed.plans.hardware import GB
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable

MEMORY_KINDS = ("weights", "optimizer", "activations")
TIME_KINDS = (
    "lookup",
    "forward_communication",
    "backward",
    "backward_communication",
    "prefetch",
    "optimizer",
)


@dataclass(frozen=True)
class ShardEstimate:
    """A part of a table on one rank: its memory, and its time in one step."""

    table: str
    rank: int
    rows: int
    columns: int
    weight_bytes: int
    """On the rank's device; of a table in host memory, only its cache."""
    optimizer_bytes: int
    """Likewise."""
    activation_bytes: int
    """Ids that are looked up, and embeddings before they are sent; of a table whose gradient is
    dense also that, which is as large as the weights."""
    host_bytes: int
    """Weights and optimizer state in host memory, of a table that a GPU reads from there."""
    lookup_ms: float
    forward_communication_ms: float
    backward_ms: float
    """Gradient and update of the rows, which FBGEMM fuses."""
    backward_communication_ms: float
    """Of a data-parallel table with the passes over all rows, as TorchRec counts."""
    prefetch_ms: float
    """Filling the cache of a table in host memory."""
    optimizer_ms: float
    """Passes over all rows, of a split table whose gradient is dense."""

    @property
    def device_bytes(self) -> int:
        """Memory on the rank's device."""
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def time_ms(self) -> float:
        """All of its time."""
        return (
            self.lookup_ms
            + self.forward_communication_ms
            + self.backward_ms
            + self.backward_communication_ms
            + self.prefetch_ms
            + self.optimizer_ms
        )


@dataclass(frozen=True)
class TableEstimate:
    """A table as one plan shards it."""

    table: EmbeddingTable
    sharding_type: str
    compute_kernel: str
    shards: tuple[ShardEstimate, ...]

    @property
    def num_bytes(self) -> int:
        """Weights and optimizer state on all devices and hosts."""
        return sum(s.weight_bytes + s.optimizer_bytes + s.host_bytes for s in self.shards)

    @property
    def ranks(self) -> list[int]:
        """Ranks that hold a part of it."""
        return sorted({shard.rank for shard in self.shards})


@dataclass(frozen=True)
class PlanEstimate:
    """A plan with its estimates."""

    problem: PlanProblem
    tables: tuple[TableEstimate, ...]
    """By name."""
    plan: ShardingPlan
    dense_bytes: int
    """Of the replicated part of the model on each rank: parameters, gradients, Adam's moments."""
    input_bytes: int
    """Of the batches that are on their way through the pipeline, on each rank."""
    margin_bytes: int
    """Kept free on each rank."""
    num_proposals: int = 0
    """That the search has compared; none of a plan that existed."""
    search_seconds: float = 0.0
    unimproved_ms: float | None = None
    """What TorchRec's own plan takes on its slowest rank, with the fixed costs of its groups; None
    if it has found none, or the plan existed."""
    improved_ms: float = 0.0
    """The same of this plan; 0 of a plan that existed."""

    @property
    def capacity_bytes(self) -> int:
        """Memory of one rank's device."""
        return int(self.problem.hardware.memory_gb * GB)

    @property
    def reserved_bytes(self) -> int:
        """Memory of each rank that no table may use."""
        return self.dense_bytes + self.input_bytes + self.margin_bytes

    @property
    def rank_bytes(self) -> float:
        """Memory of the fullest rank, with all that is reserved."""
        return float(self.memory.max()) + self.reserved_bytes

    @cached_property
    def memory_by_kind(self) -> np.ndarray:
        """Bytes on the device, [MEMORY_KINDS, ranks]."""
        return self._sum(("weight_bytes", "optimizer_bytes", "activation_bytes"))

    @cached_property
    def time_by_kind(self) -> np.ndarray:
        """Milliseconds per step, [TIME_KINDS, ranks]."""
        return self._sum(tuple(f"{kind}_ms" for kind in TIME_KINDS))

    @cached_property
    def host_memory(self) -> np.ndarray:
        """Bytes in host memory of tables that GPUs read from there, [ranks]."""
        return self._sum(("host_bytes",))[0]

    @cached_property
    def memory_by_table(self) -> np.ndarray:
        """Bytes on the device, [tables, ranks]."""
        return self._by_table("device_bytes")

    @cached_property
    def time_by_table(self) -> np.ndarray:
        """Milliseconds per step, [tables, ranks]."""
        return self._by_table("time_ms")

    @property
    def memory(self) -> np.ndarray:
        """Bytes of the tables on the device, [ranks]."""
        return self.memory_by_kind.sum(0)

    @property
    def time(self) -> np.ndarray:
        """Milliseconds that the tables take in a step, [ranks]."""
        return self.time_by_kind.sum(0)

    @property
    def critical_rank(self) -> int:
        """The rank that the others wait for."""
        return int(self.time.argmax())

    @property
    def embedding_ms(self) -> float:
        """Time of the tables in a step: that of the critical rank."""
        return float(self.time.max())

    @property
    def time_balance(self) -> float:
        """Largest over mean time; 1 is perfect."""
        return _balance(self.time)

    @property
    def memory_balance(self) -> float:
        """Largest over mean memory; 1 is perfect."""
        return _balance(self.memory)

    def _sum(self, names: Sequence[str]) -> np.ndarray:
        total = np.zeros((len(names), self.problem.world_size))
        for table in self.tables:
            for shard in table.shards:
                total[:, shard.rank] += [getattr(shard, name) for name in names]
        return total

    def _by_table(self, name: str) -> np.ndarray:
        total = np.zeros((len(self.tables), self.problem.world_size))
        for row, table in enumerate(self.tables):
            for shard in table.shards:
                total[row, shard.rank] += getattr(shard, name)
        return total


def _balance(values: np.ndarray) -> float:
    return float(values.max() / values.mean()) if values.any() else 1.0
