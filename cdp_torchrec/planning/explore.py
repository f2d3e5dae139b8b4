"""Plans for all cells of an exploration, those of earlier explorations from their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.file import read_plan
from cdp_torchrec.distributed.plans.hardware import GB, load_hardware
from cdp_torchrec.distributed.plans.planner import find_tables
from cdp_torchrec.planning.cache import ResultCache
from cdp_torchrec.planning.cell import Cell, FeasibleCell, InfeasibleCell, make_cells
from cdp_torchrec.planning.config import PlanningConfig, PlanningExperimentConfig
from cdp_torchrec.planning.dense import DenseCost, count_dense
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.estimator import estimate_given_plan, estimate_plan
from cdp_torchrec.planning.infeasible import find_fixes, find_shortage
from cdp_torchrec.planning.workload import Workload, read_workload

CellResult = FeasibleCell | InfeasibleCell


@dataclass(frozen=True)
class Exploration:
    """All cells, in their order."""

    config: PlanningConfig
    optimizer: SparseOptimizerConfig
    workload: Workload
    dense: DenseCost
    results: Sequence[CellResult]

    @property
    def feasible(self) -> list[FeasibleCell]:
        """Cells with a plan."""
        return [result for result in self.results if isinstance(result, FeasibleCell)]

    @property
    def infeasible(self) -> list[InfeasibleCell]:
        """Cells without one."""
        return [result for result in self.results if isinstance(result, InfeasibleCell)]


def explore(config: PlanningExperimentConfig) -> Exploration:
    """Plan every cell.

    Raises:
        ConfigError: hardware is unknown or absurd, a world size has broken nodes, rows or pooling
            factors are unknown or missing; before the first cell is planned.
        DatasetError: there is no readable schema, or the dataset is damaged.
    """
    planning = config.planning
    hardware = {Path(name).stem: load_hardware(name) for name in planning.hardware}
    cells = make_cells(planning, config.sharding, hardware)
    _check_compared(planning, cells)
    workload = read_workload(config)
    cache = ResultCache(planning.cache or planning.output / "cache", workload, config)
    dense = cache.dense(lambda: count_dense(workload, planning.batch_size))
    results: list[CellResult] = []
    for cell in tqdm(cells, unit="plan", dynamic_ncols=True):
        results.append(cache.cell(cell, lambda cell=cell: _plan(cell, config, workload, dense)))
    return Exploration(planning, config.optimizer.sparse, workload, dense, results)


def _check_compared(planning: PlanningConfig, cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    unknown = [name for name in planning.compare or () if name not in names]
    if unknown:
        raise ConfigError.of(
            [f"planning.compare: found {unknown[0]!r}, expected two of {', '.join(names)}"]
        )


def _plan(
    cell: Cell, config: PlanningExperimentConfig, workload: Workload, dense: DenseCost
) -> CellResult:
    optimizer, batch_size = config.optimizer.sparse, config.planning.batch_size
    try:
        plan = _estimate(cell, workload, optimizer, batch_size)
    except ConfigError as error:
        return _explain(cell, workload, optimizer, batch_size, error)
    result = FeasibleCell(
        cell=cell,
        plan=plan,
        dense_ms=dense.compute_ms(cell.hardware),
        all_reduce_ms=dense.all_reduce_ms(cell.hardware, cell.world_size),
    )
    if result.rank_bytes > plan.capacity_bytes:
        return InfeasibleCell(cell, reason=_gradients(result), fixes=())
    return result


def _gradients(result: FeasibleCell) -> list[str]:
    replicated = [t for t in result.plan.tables if t.sharding_type == "data_parallel"]
    largest = max(replicated, key=lambda table: table.table.num_embeddings)
    return [
        f"every rank needs {result.rank_bytes / GB:.1f} GB of {result.plan.capacity_bytes / GB:.0f}"
        " GB: TorchRec's planner accepts it, because it does not count the gradients of "
        "data-parallel tables, each as large as its table",
        f"largest: {largest.table.name}, {largest.table.num_embeddings:,} rows",
    ]


def _estimate(
    cell: Cell, workload: Workload, optimizer: SparseOptimizerConfig, batch_size: int
) -> PlanEstimate:
    model = workload.make_model(optimizer, cell.hardware.device)
    if cell.sharding.plan is None:
        return estimate_plan(
            model,
            cell.sharding,
            optimizer,
            hardware=cell.hardware,
            world_size=cell.world_size,
            batch_size=batch_size,
            pooling_factors=workload.pooling_factors,
        )
    plan = read_plan(
        cell.sharding.plan,
        find_tables(model),
        optimizer=optimizer,
        world_size=cell.world_size,
        local_world_size=min(cell.world_size, cell.hardware.ranks_per_node),
        device=cell.hardware.device,
    )
    return estimate_given_plan(
        model,
        plan,
        cell.sharding,
        optimizer,
        hardware=cell.hardware,
        world_size=cell.world_size,
        batch_size=batch_size,
        pooling_factors=workload.pooling_factors,
    )


def _explain(
    cell: Cell,
    workload: Workload,
    optimizer: SparseOptimizerConfig,
    batch_size: int,
    error: ConfigError,
) -> InfeasibleCell:
    try:
        shortage = find_shortage(workload, cell, optimizer, batch_size)
    except ConfigError:
        shortage = None
    if shortage is None or shortage.needed_bytes <= shortage.free_bytes:
        return InfeasibleCell(cell, reason=str(error).splitlines(), fixes=())
    return InfeasibleCell(
        cell,
        reason=shortage.lines(cell),
        fixes=find_fixes(workload, cell, optimizer, batch_size, shortage),
    )
