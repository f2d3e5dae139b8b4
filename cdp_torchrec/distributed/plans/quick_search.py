"""TorchRec's search for a plan, at a fraction of its time: same options, same plans.

Upstream treats every shard of a table by itself, although all but the last are alike: it estimates
each one, hashes and copies them for every proposal, and adds them up rank by rank. With 256 ranks
that is minutes.
"""

import copy
from typing import Any, cast

import numpy as np
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.types import (
    PartitionByType,
    Perf,
    PlannerError,
    PlannerErrorType,
    Shard,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)


class QuickOption(ShardingOption):
    """An option that is hashed by what distinguishes it in a search, and copied without depth."""

    def __hash__(self) -> int:
        """Of table, type, kernel and cache; the shards follow from them."""
        return hash((self.fqn, self.sharding_type, self.compute_kernel, self.cache_params))

    def __deepcopy__(self, memo: dict[int, Any] | None) -> "QuickOption":
        """An option with shards of its own, which share their estimates."""
        copied = copy.copy(self)
        copied.shards = [
            Shard(shard.size, shard.offset, shard.storage, shard.perf, shard.rank)
            for shard in self.shards
        ]
        return copied


class EstimatorOfDistinctShards(ShardEstimator):
    """Estimates one shard of each size."""

    def __init__(self, estimator: ShardEstimator) -> None:
        """Wrap another estimator.

        Args:
            estimator: its estimate of a shard depends on the option and on the shard's size.
        """
        self._estimator = estimator

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap
    ) -> None:
        """Fill in the estimates of all shards."""
        shards = [option.shards for option in sharding_options]
        for option in sharding_options:
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        self._estimator.estimate(sharding_options, sharder_data_map)
        for option, every in zip(sharding_options, shards, strict=True):
            estimated = {tuple(shard.size): shard for shard in option.shards}
            for shard in every:
                of_its_size = estimated[tuple(shard.size)]
                shard.storage, shard.perf = of_its_size.storage, of_its_size.perf
            option.shards = every


class QuickPartitioner(GreedyPerfPartitioner):
    """TorchRec's partitioner, with tables that lie on all ranks placed at once."""

    def __init__(self) -> None:
        """Without anything placed yet."""
        super().__init__()
        self._needs: dict[int, tuple[ShardingOption, np.ndarray]] = {}

    def partition(
        self,
        proposal: list[ShardingOption],
        storage_constraint: Topology,
        hbm_per_device: int | None = None,
    ) -> list[ShardingOption]:
        """The proposal with ranks for its shards.

        Raises:
            PlannerError: it does not fit.
        """
        everywhere = [o for o in proposal if o.partition_by == PartitionByType.UNIFORM.value]
        others = [o for o in proposal if o.partition_by != PartitionByType.UNIFORM.value]
        if not everywhere:
            return super().partition(proposal, storage_constraint, hbm_per_device)
        needed = np.sum([self._need(option) for option in everywhere], axis=0)
        left = _without(storage_constraint, needed)
        for option in everywhere:
            for rank, shard in enumerate(option.shards):
                shard.rank = rank
        super().partition(others, left, hbm_per_device)
        return proposal

    def _need(self, option: ShardingOption) -> np.ndarray:
        """Memory and time on each rank, [3 + 6, ranks]."""
        known = self._needs.get(id(option))
        if known is None or known[0] is not option:
            known = (option, np.array([_numbers(shard) for shard in option.shards]).T)
            self._needs[id(option)] = known
        return known[1]


class _SharedPerf(Perf):
    """Time of a device, which nobody changes in place, so that copies of the device share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedPerf":
        return self


def _numbers(shard: Shard) -> tuple[float, ...]:
    storage, perf = cast(Storage, shard.storage), cast(Perf, shard.perf)
    return (
        *(storage.hbm, storage.ddr, storage.ssd),
        *(perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms),
        *(perf.input_dist_comms, perf.prefetch_compute),
    )


def _without(topology: Topology, needed: np.ndarray) -> Topology:
    """The topology as the uniform tables leave it; devices are new, all else is shared."""
    left = copy.copy(topology)
    left._devices = []
    for device, (hbm, ddr, ssd, *perf) in zip(topology.devices, needed.T.tolist(), strict=True):
        copied = copy.copy(device)
        copied.storage = device.storage - Storage(int(hbm), int(ddr), int(ssd))
        if min(copied.storage.hbm, copied.storage.ddr) < 0:
            raise PlannerError(
                error_type=PlannerErrorType.PARTITION,
                message=f"Tables on all ranks do not fit on rank {device.rank}",
            )
        copied.perf = _SharedPerf(*(device.perf + Perf(*perf)).__dict__.values())
        left._devices.append(copied)
    return left
