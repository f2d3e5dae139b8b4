"""What the shards of some options put on every rank, and where else they could lie."""

# W ranks, G groups of an option that are placed one by one, S ranks of a group

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torchrec.distributed.planner.types import PartitionByType, Perf, ShardingOption, Storage

from cdp_torchrec.distributed.plans.fixed_costs import Group

CLOSE = 1 - 1e-9
"""Share below which a time is shorter and not only rounded otherwise; else a search may circle."""


@dataclass(frozen=True)
class Choice:
    """One way to shard a table. Its groups lie anywhere, each on a whole number of ranks."""

    option: ShardingOption
    ms: np.ndarray
    """Time on each rank of each group, [G, S]."""
    memory: np.ndarray
    """Bytes of device and host on each rank of each group, [2, G, S]."""
    input_ms: float
    """What its ids cost every rank on their way."""

    @property
    def longest_ms(self) -> float:
        """Of its slowest shard."""
        return float(self.ms.max())

    @property
    def work_ms(self) -> float:
        """Of all its shards together."""
        return float(self.ms.sum())

    @property
    def group(self) -> Group:
        """Tables that agree in this share one lookup and its collectives."""
        return self.option.path, self.option.sharding_type, self.option.compute_kernel


def make_choice(
    option: ShardingOption, world_size: int, local_world_size: int, *, input_ms: float
) -> Choice | None:
    """The choice of an option; None if its shards do not fill whole groups."""
    spans = {
        PartitionByType.DEVICE.value: 1,
        PartitionByType.UNIFORM.value: world_size,
        PartitionByType.HOST.value: local_world_size,
        PartitionByType.MULTI_HOST.value: local_world_size,
    }
    span = spans[option.partition_by]
    if len(option.shards) % span or len(option.shards) > world_size:
        return None
    perfs = [cast(Perf, shard.perf).total for shard in option.shards]
    storages = [cast(Storage, shard.storage) for shard in option.shards]
    memory = np.array([[s.hbm for s in storages], [s.ddr for s in storages]], dtype=float)
    return Choice(option, np.reshape(perfs, (-1, span)), memory.reshape(2, -1, span), input_ms)


class RankLoads:
    """Time and memory of every rank, while choices are put there and taken away."""

    def __init__(self, free: np.ndarray) -> None:
        """Without any table.

        Args:
            free: bytes of device and host that tables may use, [2, W].
        """
        self.ms = np.zeros(free.shape[1])
        self.input_ms = 0.0
        """What the ids of all choices cost every rank, beside `ms`."""
        self.free = free.copy()

    def add(self, choice: Choice, places: Sequence[int], sign: int = 1) -> None:
        """Put the groups of a choice at these places, or take them away with -1."""
        self.input_ms += sign * choice.input_ms
        for group, place in enumerate(places):
            span = choice.ms.shape[1]
            ranks = slice(place * span, (place + 1) * span)
            self.ms[ranks] += sign * choice.ms[group]
            self.free[:, ranks] -= sign * choice.memory[:, group]

    def put(self, choice: Choice) -> list[int] | None:
        """Put each group where the ranks end up least loaded, the slowest first.

        Returns:
            The places; None, and nothing is put, if a group fits nowhere.
        """
        span = choice.ms.shape[1]
        loads = self.ms.reshape(-1, span)  # a view, as is the next
        free = self.free.reshape(2, -1, span)
        places = [-1] * len(choice.ms)
        for group in np.argsort(-choice.ms.max(1), kind="stable").tolist():
            after = (loads + choice.ms[group]).max(1)
            fits = np.asarray((free >= choice.memory[:, group, None, :]).all((0, 2)))
            fits[[place for place in places if place >= 0]] = False  # one shard of a table a rank
            place = int(np.where(fits, after, np.inf).argmin())
            if not fits[place]:
                self._take_back(choice, places)
                return None
            loads[place] += choice.ms[group]
            free[:, place] -= choice.memory[:, group]
            places[group] = place
        self.input_ms += choice.input_ms
        return places

    def _take_back(self, choice: Choice, places: Sequence[int]) -> None:
        span = choice.ms.shape[1]
        for group, place in enumerate(places):
            if place >= 0:
                self.ms.reshape(-1, span)[place] -= choice.ms[group]
                self.free.reshape(2, -1, span)[:, place] += choice.memory[:, group]


def places_of(choice: Choice, option: ShardingOption) -> list[int]:
    """Where an option that is placed has its groups."""
    span = choice.ms.shape[1]
    ranks = [cast(int, shard.rank) for shard in option.shards]
    return [rank // span for rank in ranks[::span]]


def is_below(value: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a pair is smaller, the first number deciding, beyond what rounding does."""
    if value[0] < other[0] * CLOSE:
        return True
    return value[0] <= other[0] and value[1] < other[1] * CLOSE
