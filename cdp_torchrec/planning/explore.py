"""Plans for all cases of an exploration, those of earlier explorations from their files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.hardware import GB, load_hardware
from cdp_torchrec.planning.cache import ResultCache
from cdp_torchrec.planning.case import (
    FeasiblePlan,
    InfeasiblePlan,
    PlanCase,
    PlanOutcome,
    make_cases,
)
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.dense import DenseCost
from cdp_torchrec.planning.early import check_constraints, check_settings
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.infeasible import find_fixes, find_shortage
from cdp_torchrec.planning.lopsided import look_for_balance
from cdp_torchrec.planning.outside import OutsideWorkload, read_outside
from cdp_torchrec.planning.outside_config import OutsideConfig
from cdp_torchrec.planning.outside_dense import count_outside
from cdp_torchrec.planning.workload import Workload, read_workload
from cdp_torchrec.progress import progress, stamped

_MANY_RANKS = 512


@dataclass(frozen=True)
class Exploration:
    """All cases, in their order."""

    config: PlanningExperimentConfig | OutsideConfig
    workload: Workload | OutsideWorkload
    dense: DenseCost
    outcomes: Sequence[PlanOutcome]

    @property
    def feasible(self) -> list[FeasiblePlan]:
        """Cases with a plan."""
        return [found for found in self.outcomes if isinstance(found, FeasiblePlan)]

    @property
    def infeasible(self) -> list[InfeasiblePlan]:
        """Cases without one."""
        return [found for found in self.outcomes if isinstance(found, InfeasiblePlan)]


def explore(config: PlanningExperimentConfig | OutsideConfig) -> Exploration:
    """Plan every case.

    Raises:
        ConfigError: hardware is unknown or absurd, a world size has broken nodes, a setting of the
            sharding is wrong or would change nothing, rows or pooling factors are unknown or
            missing, a model from outside cannot be made; before the first case is planned.
        DatasetError: there is no readable schema, or the dataset is damaged.
    """
    planning = config.planning
    hardware = {Path(name).stem: load_hardware(name) for name in planning.hardware}
    cases = make_cases(config, hardware)
    check_settings(config, cases)
    workload = read_outside(config) if isinstance(config, OutsideConfig) else read_workload(config)
    check_constraints(workload, cases)
    cache = ResultCache(planning.cache or planning.output / "cache", workload)
    dense = cache.dense(workload) if isinstance(workload, Workload) else count_outside(workload)
    outcomes: list[PlanOutcome] = []
    for case in progress(cases, "plan", unit="plans"):
        outcomes.append(cache.outcome(case, dense, lambda case=case: _plan(case, workload, dense)))
    return Exploration(config, workload, dense, outcomes)


def _plan(case: PlanCase, workload: Workload | OutsideWorkload, dense: DenseCost) -> PlanOutcome:
    if case.world_size >= _MANY_RANKS:
        print(stamped(f"plan {case.name}, which may take minutes"), file=sys.stderr, flush=True)
    try:
        found = estimate(workload.problem(case))
    except ConfigError as error:
        return _explain(case, workload, error)
    result = FeasiblePlan(
        case=case,
        estimate=found,
        dense_ms=dense.compute_ms(case.hardware),
        all_reduce_ms=dense.all_reduce_ms(case.hardware, case.world_size),
    )
    if reason := _too_much(result):
        return InfeasiblePlan(case, reason=reason, fixes=())
    return replace(result, lopsided=look_for_balance(result, workload))


def _too_much(result: FeasiblePlan) -> list[str]:
    """What the memory is for, of a plan that TorchRec accepts although it does not fit."""
    found, host = result.estimate, result.case.hardware.host_memory_gb
    in_host = found.host_memory.max() / GB
    if in_host > host:  # which a search does not let pass
        return [
            f"rank {int(found.host_memory.argmax())} needs {in_host:.1f} GB of {host:g} GB host "
            "memory under the plan that is given"
        ]
    if result.rank_bytes <= found.capacity_bytes:
        return []
    rank = int(found.memory.argmax())
    needed = f"{result.rank_bytes / GB:.1f} GB of {found.capacity_bytes / GB:.0f} GB"
    if result.case.sharding.plan is not None:
        return [f"rank {rank} needs {needed} under the plan that is given"]
    there = {
        table.table.name: sum(shard.weight_bytes for shard in table.shards if shard.rank == rank)
        for table in found.tables
        if table.compute_kernel == "dense"
    }
    largest = max(there, key=lambda name: there[name])
    return [
        f"rank {rank} needs {needed}: TorchRec's planner accepts it, because it does not count the "
        "gradients of data-parallel tables, nor of others whose optimizer is not fused into the "
        "backward pass, each as large as the weights",
        f"largest there: {largest}, {there[largest] / GB:.1f} GB of weights",
    ]


def _explain(
    case: PlanCase, workload: Workload | OutsideWorkload, error: ConfigError
) -> InfeasiblePlan:
    """A shortage of memory and its remedies, or what else the error says."""
    unexplained = InfeasiblePlan(case, reason=str(error).splitlines(), fixes=())
    if case.sharding.plan is not None:
        return unexplained  # the file is wrong, whatever fits
    try:
        shortage = find_shortage(workload.problem(case))
    except ConfigError:
        return unexplained
    if not 0 < shortage.free_bytes < shortage.needed_bytes:
        return unexplained  # no table is to blame
    return InfeasiblePlan(
        case, reason=shortage.lines(case), fixes=find_fixes(workload, case, shortage)
    )
