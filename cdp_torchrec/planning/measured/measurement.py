"""What steps under sharding plans take on the machine at hand.

Measured are the tables, with real collectives and optimizer, without the rest of the model: each
table by itself, because the kernels and messages of a plan serve many tables at once, and all of
them together.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torchrec.distributed.types import ParameterSharding, ShardingPlan

from cdp_torchrec.distributed.plans.tables import shardings_of, shards_of
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.planning.measured.job import MeasuredJob
from cdp_torchrec.planning.measured.sharded_tables import PIECES, Piece, ShardedTables, TableBytes
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.timer import Timer, alternate

_WARM_UP = 2
_SECONDS = 1.0
"""After which a table gets no further step in a round."""


@dataclass(frozen=True)
class MeasuredStep:
    """A step of one table, or of all of a plan, on one rank."""

    ms: Mapping[Piece, float]
    """Of a step: median of the steps of a round, then of the rounds."""
    memory: TableBytes

    @property
    def total_ms(self) -> float:
        """Of all pieces."""
        return sum(self.ms.values())

    @property
    def ms_without_ids(self) -> float:
        """Of all pieces but the way of the ids, which the planner leaves out of its total."""
        return self.total_ms - self.ms["input"]


@dataclass(frozen=True)
class MeasuredPlan:
    """Steps under a plan, by rank."""

    plan: ShardingPlan
    tables: Mapping[str, Sequence[MeasuredStep]]
    """Of each table by itself."""
    whole: Sequence[MeasuredStep]
    """Of all tables together."""


def measure_plans(job: MeasuredJob, plans: Mapping[str, ShardingPlan]) -> dict[str, MeasuredPlan]:
    """Steps under plans by name; collective, the same on all ranks.

    Every round visits every plan, and allocates one table after the other, so that a slow moment
    of the machine hits all plans alike and no two plans are in memory. What several plans shard
    alike is measured once.

    Args:
        job: tables and ids.
        plans: of these tables.
    """
    works: dict[Hashable, tuple[list[str], Mapping[str, ParameterSharding]]] = {}
    keys: dict[str, dict[str, Hashable]] = {}
    names = [table.name for table in job.problem.tables]
    for name, plan in plans.items():
        shardings = shardings_of(plan)
        keys[name] = {}
        for label, some in [*((table, [table]) for table in names), ("", names)]:
            key = tuple((table, _identity(shardings[table])) for table in some)
            works.setdefault(key, (some, shardings))
            keys[name][label] = key
    rounds = job.config.benchmark.rounds
    held: dict[Hashable, TableBytes] = {}
    with ProgressBar(
        "benchmark", total=rounds * len(works), unit="tables", active=is_rank_zero()
    ) as bar:

        def visit(key: Hashable) -> Mapping[Piece, float]:
            ms, held[key] = _visit(job, *works[key])
            bar.advance()
            return ms

        samples = alternate({key: lambda _, k=key: visit(k) for key in works}, range(rounds))
    mine = {key: MeasuredStep(_median(samples[key]), held[key]) for key in works}
    ranks: list[dict[Hashable, MeasuredStep]] = [{} for _ in range(job.problem.world_size)]
    dist.all_gather_object(ranks, mine)
    return {
        name: MeasuredPlan(
            plan=plan,
            tables={t: [steps[keys[name][t]] for steps in ranks] for t in names},
            whole=[steps[keys[name][""]] for steps in ranks],
        )
        for name, plan in plans.items()
    }


def _visit(
    job: MeasuredJob, names: Sequence[str], shardings: Mapping[str, ParameterSharding]
) -> tuple[Mapping[Piece, float], TableBytes]:
    """Median milliseconds of a few steps with some tables, and their memory."""
    sharded = ShardedTables(
        [table for table in job.problem.tables if table.name in names],
        shardings,
        problem=job.problem,
        device=job.device,
    )
    timer = Timer()
    warm_up = [timer.ms(lambda: sharded.step(job.ids[0])) for _ in range(_WARM_UP)]
    seconds = torch.tensor(warm_up[-1] / 1e3, device=job.device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    num_steps = max(1, min(len(job.ids), int(_SECONDS / seconds.item())))
    return _median([sharded.step(ids) for ids in job.ids[:num_steps]]), sharded.memory()


def _median(samples: Sequence[Mapping[Piece, float]]) -> dict[Piece, float]:
    return {piece: statistics.median(ms[piece] for ms in samples) for piece in PIECES}


def _identity(sharding: ParameterSharding) -> Hashable:
    """Equal for tables that are sharded alike."""
    return (
        sharding.sharding_type,
        sharding.compute_kernel,
        sharding.cache_params,
        shards_of(sharding),
    )
