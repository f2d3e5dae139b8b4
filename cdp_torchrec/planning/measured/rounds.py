"""Runs sharding plans for a short time on the machine at hand.

Measured are the tables, with real collectives and optimizer, without the rest of the model: each
table by itself, because the kernels and messages of a plan serve many tables at once, and all of
them together.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from tqdm import tqdm

from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.planning.measured.lookups import PIECES, Piece, ShardedTables, TableBytes
from cdp_torchrec.planning.measured.setting import Setting

_WARM_UP = 2
_SECONDS = 1.0
"""After which a table gets no further step in a round."""


@dataclass(frozen=True)
class Cost:
    """What one table, or all of a plan, cost on one rank."""

    ms: Mapping[Piece, float]
    """Of a step: median of the steps of a round, then of the rounds."""
    bytes: TableBytes

    @property
    def total_ms(self) -> float:
        """Of all pieces."""
        return sum(self.ms.values())


@dataclass(frozen=True)
class MeasuredPlan:
    """Costs of a plan, by rank."""

    plan: ShardingPlan
    tables: Mapping[str, Sequence[Cost]]
    """Of each table by itself."""
    whole: Sequence[Cost]
    """Of all tables together."""


def measure_plans(setting: Setting, plans: Mapping[str, ShardingPlan]) -> dict[str, MeasuredPlan]:
    """Costs of plans by name; collective, the same on all ranks.

    Every round visits every plan, and allocates one table after the other, so that a slow moment
    of the machine hits all plans alike and no two plans are in memory. What several plans shard
    alike is measured once.

    Args:
        setting: tables and ids.
        plans: of these tables.
    """
    works: dict[Hashable, tuple[list[str], Mapping[str, ParameterSharding]]] = {}
    keys: dict[str, dict[str, Hashable]] = {}
    names = [table.name for table in setting.tables]
    for name, plan in plans.items():
        shardings = _shardings(plan)
        keys[name] = {}
        for label, some in [*((table, [table]) for table in names), ("", names)]:
            key = tuple((table, _identity(shardings[table])) for table in some)
            works.setdefault(key, (some, shardings))
            keys[name][label] = key
    rounds = setting.config.benchmark.rounds
    samples: dict[Hashable, list[Mapping[Piece, float]]] = defaultdict(list)
    held: dict[Hashable, TableBytes] = {}
    bar = tqdm(
        total=rounds * len(works), desc="benchmark", unit="table", disable=not is_rank_zero()
    )
    with bar:
        for _ in range(rounds):
            for key, (some, shardings) in works.items():
                ms, held[key] = _visit(setting, some, shardings)
                samples[key].append(ms)
                bar.update()
    mine = {key: Cost(ms=_median(samples[key]), bytes=held[key]) for key in works}
    ranks: list[dict[Hashable, Cost]] = [{} for _ in range(setting.world_size)]
    dist.all_gather_object(ranks, mine)
    return {
        name: MeasuredPlan(
            plan=plan,
            tables={t: [costs[keys[name][t]] for costs in ranks] for t in names},
            whole=[costs[keys[name][""]] for costs in ranks],
        )
        for name, plan in plans.items()
    }


def _visit(
    setting: Setting, names: Sequence[str], shardings: Mapping[str, ParameterSharding]
) -> tuple[Mapping[Piece, float], TableBytes]:
    """Median milliseconds of a few steps with some tables, and their memory."""
    sharded = ShardedTables(
        [table for table in setting.tables if table.name in names],
        shardings,
        sharding=setting.config.sharding,
        optimizer=setting.config.optimizer.sparse,
        device=setting.device,
    )
    for _ in range(_WARM_UP):
        started = time.perf_counter()
        sharded.step(setting.ids[0])
    seconds = torch.tensor(time.perf_counter() - started, device=setting.device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    num_steps = max(1, min(len(setting.ids), int(_SECONDS / seconds.item())))
    return _median([sharded.step(ids) for ids in setting.ids[:num_steps]]), sharded.bytes()


def _median(samples: Sequence[Mapping[Piece, float]]) -> dict[Piece, float]:
    return {piece: statistics.median(ms[piece] for ms in samples) for piece in PIECES}


def _shardings(plan: ShardingPlan) -> dict[str, ParameterSharding]:
    """By table."""
    found = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        found.update(module_plan)
    return found


def _identity(sharding: ParameterSharding) -> Hashable:
    """Equal for tables that are sharded alike."""
    spec = sharding.sharding_spec
    shards = [] if spec is None else spec.shards  # pyrefly: ignore[missing-attribute]
    return (
        sharding.sharding_type,
        sharding.compute_kernel,
        tuple((str(s.placement), *s.shard_offsets, *s.shard_sizes) for s in shards),
    )
