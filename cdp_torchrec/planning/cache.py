"""Results of earlier explorations, by the content of everything that decides on them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.file import dump_plan, read_plan
from cdp_torchrec.distributed.plans.planner import EmbeddingTable, find_tables
from cdp_torchrec.planning.cell import Cell, FeasibleCell, InfeasibleCell
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.dense import DenseCost, Operation
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate
from cdp_torchrec.planning.workload import Workload
from cdp_torchrec.whole_file import write_json, write_whole

_PACKAGES = ("torch", "torchrec", "cdp_torchrec")
_FORMAT = 4
"""Counts changes of what the files hold and of how estimates are made."""


class ResultCache:
    """A directory with one file for each cell."""

    def __init__(
        self, directory: Path, workload: Workload, config: PlanningExperimentConfig
    ) -> None:
        """Open or create it.

        Args:
            directory: of the files.
            workload: tables, their lookups, and the dense part.
            config: batch size and optimizers.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._optimizer: SparseOptimizerConfig = config.optimizer.sparse
        self._batch_size = config.planning.batch_size
        self._tables: list[EmbeddingTable] = find_tables(
            workload.make_model(self._optimizer, "cuda")
        )
        self._common = {
            "format": _FORMAT,
            "versions": {name: version(name) for name in _PACKAGES},
            "tables": [asdict(table) for table in self._tables],
            "layout": repr(workload.layout),
            "model": workload.model.model_dump(mode="json"),
            "pooling_factors": dict(workload.pooling_factors),
            "impressions_per_request": workload.impressions_per_request,
            "batch_size": self._batch_size,
        }

    def dense(self, count: Callable[[], DenseCost]) -> DenseCost:
        """The cost of the dense part, counted if it is new."""
        path = self._path({"dense": True})
        if path.exists():
            found = json.loads(path.read_text())
            operations = tuple(Operation(*pair) for pair in found["operations"])
            return DenseCost(operations, found["num_parameters"])
        cost = count()
        pairs = [(operation.flops, operation.num_bytes) for operation in cost.operations]
        write_json(path, {"operations": pairs, "num_parameters": cost.num_parameters})
        return cost

    def cell(
        self, cell: Cell, plan: Callable[[], FeasibleCell | InfeasibleCell]
    ) -> FeasibleCell | InfeasibleCell:
        """The result of a cell, planned if it is new."""
        path = self._path(
            {
                "hardware": cell.hardware.model_dump(mode="json"),
                "world_size": cell.world_size,
                "strategy": cell.strategy,
                "sharding": cell.sharding.model_dump(mode="json"),
                "plan": _file_text(cell.sharding.plan),
                "optimizer": self._optimizer.kind,
            }
        )
        if path.exists():
            return self._load(path, cell)
        result = plan()
        write_json(path, self._dump(result))
        if isinstance(result, FeasibleCell):
            write_whole(path.with_suffix(".plan"), self._plan_text(result))
        return result

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(self._common | key, sort_keys=True, default=str)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def _plan_text(self, result: FeasibleCell) -> str:
        return dump_plan(
            result.plan.plan,
            self._tables,
            world_size=result.plan.world_size,
            local_world_size=result.plan.local_world_size,
            device=result.cell.hardware.device,
        )

    def _dump(self, result: FeasibleCell | InfeasibleCell) -> dict[str, Any]:
        if isinstance(result, InfeasibleCell):
            return {"reason": list(result.reason), "fixes": list(result.fixes)}
        plan = result.plan
        return {
            "dense_ms": result.dense_ms,
            "all_reduce_ms": result.all_reduce_ms,
            "tables": {
                table.table.name: [
                    table.sharding_type,
                    table.compute_kernel,
                    [list(asdict(shard).values())[1:] for shard in table.shards],
                ]
                for table in plan.tables
            },
            "reserved": [plan.dense_bytes, plan.input_bytes, plan.margin_bytes],
            "search": [plan.num_proposals, plan.search_seconds],
        }

    def _load(self, path: Path, cell: Cell) -> FeasibleCell | InfeasibleCell:
        found = json.loads(path.read_text())
        if "reason" in found:
            return InfeasibleCell(cell, found["reason"], found["fixes"])
        dense_bytes, input_bytes, margin_bytes = found["reserved"]
        num_proposals, search_seconds = found["search"]
        tables = tuple(
            TableEstimate(
                table=table,
                sharding_type=found["tables"][table.name][0],
                compute_kernel=found["tables"][table.name][1],
                shards=tuple(
                    ShardEstimate(table.name, *values) for values in found["tables"][table.name][2]
                ),
            )
            for table in self._tables
        )
        plan = PlanEstimate(
            hardware=cell.hardware,
            world_size=cell.world_size,
            batch_size=self._batch_size,
            tables=tables,
            plan=read_plan(
                path.with_suffix(".plan"),
                self._tables,
                optimizer=self._optimizer,
                world_size=cell.world_size,
                local_world_size=min(cell.world_size, cell.hardware.ranks_per_node),
                device=cell.hardware.device,
            ),
            dense_bytes=dense_bytes,
            input_bytes=input_bytes,
            margin_bytes=margin_bytes,
            num_proposals=num_proposals,
            search_seconds=search_seconds,
        )
        return FeasibleCell(cell, plan, found["dense_ms"], found["all_reduce_ms"])


def _file_text(path: Path | None) -> str | None:
    return path.read_text() if path is not None and path.exists() else None
