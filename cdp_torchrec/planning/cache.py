"""Results of earlier explorations, by the content of everything that decides on them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cdp_torchrec.distributed.plans.file import read_plan, write_plan
from cdp_torchrec.distributed.plans.tables import EmbeddingTable
from cdp_torchrec.planning.case import (
    FeasiblePlan,
    InfeasiblePlan,
    Lopsided,
    PlanCase,
    PlanOutcome,
)
from cdp_torchrec.planning.dense import DenseCost, Operation
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.workload import Workload
from cdp_torchrec.whole_file import write_json

_PACKAGES = ("torch", "torchrec", "cdp_torchrec")
_FORMAT = 12
"""Counts changes of what the files hold and of how estimates are made."""


class ResultCache:
    """A directory with one file for each case."""

    def __init__(self, directory: Path, workload: Workload | OutsideWorkload) -> None:
        """Open or create it.

        Args:
            directory: of the files.
            workload: tables, their lookups, and the dense part.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._workload = workload
        self._common = {
            "format": _FORMAT,
            "versions": {name: version(name) for name in _PACKAGES},
            **workload.identity,
            "pooling_factors": dict(workload.pooling_factors),
            "batch_size": workload.batch_size,
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

    def outcome(self, case: PlanCase, plan: Callable[[], PlanOutcome]) -> PlanOutcome:
        """The outcome of a case, planned if it is new."""
        path = self._path(
            {
                "hardware": case.hardware.model_dump(mode="json"),
                "world_size": case.world_size,
                "strategy": case.strategy,
                "sharding": case.sharding.model_dump(mode="json"),
                "plan": _file_text(case.sharding.plan),
                "optimizer": case.optimizer.kind,
                "replica_sync_steps": case.replica_sync_steps,
            }
        )
        if path.exists():
            return self._load(path, case)
        outcome = plan()
        if isinstance(outcome, FeasiblePlan):
            found = outcome.estimate
            write_plan(path.with_suffix(".plan"), found.plan, found.problem)
        write_json(path, _dump(outcome))  # last: it says that the outcome is there
        return outcome

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(self._common | key, sort_keys=True, default=str)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def _load(self, path: Path, case: PlanCase) -> PlanOutcome:
        found = json.loads(path.read_text())
        if "reason" in found:
            return InfeasiblePlan(case, found["reason"], found["fixes"])
        problem = self._workload.problem(case)
        dense_bytes, input_bytes, margin_bytes = found["reserved"]
        num_proposals, search_seconds, unimproved_ms, improved_ms = found["search"]
        estimate = PlanEstimate(
            problem=problem,
            tables=tuple(
                _load_table(table, *found["tables"][table.name]) for table in problem.tables
            ),
            plan=read_plan(path.with_suffix(".plan"), problem),
            dense_bytes=dense_bytes,
            input_bytes=input_bytes,
            margin_bytes=margin_bytes,
            num_proposals=num_proposals,
            search_seconds=search_seconds,
            unimproved_ms=unimproved_ms,
            improved_ms=improved_ms,
        )
        lopsided = found["lopsided"]
        return FeasiblePlan(
            case,
            estimate,
            found["dense_ms"],
            found["all_reduce_ms"],
            lopsided=None if lopsided is None else Lopsided(**lopsided),
        )


def _dump(outcome: PlanOutcome) -> dict[str, Any]:
    if isinstance(outcome, InfeasiblePlan):
        return {"reason": list(outcome.reason), "fixes": list(outcome.fixes)}
    found = outcome.estimate
    return {
        "dense_ms": outcome.dense_ms,
        "all_reduce_ms": outcome.all_reduce_ms,
        "lopsided": None if outcome.lopsided is None else asdict(outcome.lopsided),
        "tables": {
            table.table.name: [
                table.sharding_type,
                table.compute_kernel,
                [list(asdict(shard).values())[1:] for shard in table.shards],
            ]
            for table in found.tables
        },
        "reserved": [found.dense_bytes, found.input_bytes, found.margin_bytes],
        "search": [
            found.num_proposals,
            found.search_seconds,
            found.unimproved_ms,
            found.improved_ms,
        ],
    }


def _load_table(
    table: EmbeddingTable, sharding_type: str, compute_kernel: str, shards: list[list[Any]]
) -> TableEstimate:
    parts = tuple(ShardEstimate(table.name, *values) for values in shards)
    return TableEstimate(table, sharding_type, compute_kernel, parts)


def _file_text(path: Path | None) -> str | None:
    return path.read_text() if path is not None and path.exists() else None
