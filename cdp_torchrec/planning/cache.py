"""Results of earlier explorations, by the content of everything that decides on them.

A file that cannot be read is made anew.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from cdp_torchrec.distributed.plans.file import read_plan, write_plan
from cdp_torchrec.distributed.plans.tables import EmbeddingTable
from cdp_torchrec.planning.case import (
    FeasiblePlan,
    InfeasiblePlan,
    Lopsided,
    PlanCase,
    PlanOutcome,
)
from cdp_torchrec.planning.dense import DenseCost, Operation, count_dense
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate, TableEstimate
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.workload import Workload
from cdp_torchrec.whole_file import write_json

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_PACKAGES = ("torch", "torchrec", "cdp_torchrec")
_FORMAT = 23
"""Counts changes of what the files hold and of how estimates are made."""
_NUMBERS = tuple(
    field.name for field in fields(PlanEstimate) if field.name not in ("problem", "tables", "plan")
)
"""Of an estimate; the rest of it is in files of their own, or made anew."""


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

    def dense(self, workload: Workload) -> DenseCost:
        """The cost of the dense part, counted if it is new.

        That of a model from outside is counted each time: what decides on it is code.
        """
        path = self._path({"dense": True})
        if (found := _known(path, _load_dense)) is not None:
            return found
        cost = count_dense(workload)
        write_json(path, asdict(cost))
        return cost

    def outcome(
        self, case: PlanCase, dense: DenseCost, plan: Callable[[], PlanOutcome]
    ) -> PlanOutcome:
        """The outcome of a case with the dense part, planned if it is new.

        A case without a plan and without a change that was seen to help is planned each time: the
        search may have run out of time on a busy machine.
        """
        path = self._path(
            {
                "hardware": case.hardware.model_dump(mode="json"),
                "world_size": case.world_size,
                "strategy": case.strategy,
                "sharding": case.sharding.model_dump(mode="json"),
                "plan": _file_text(case.sharding.plan),
                "optimizer": case.optimizer.kind,
                "replica_sync_steps": case.replica_sync_steps,
                "dense": asdict(dense),
            }
        )
        if (known := _known(path, lambda found: self._load(found, path, case))) is not None:
            return known
        outcome = plan()
        if isinstance(outcome, InfeasiblePlan) and not outcome.fixes:
            return outcome
        if isinstance(outcome, FeasiblePlan):
            found = outcome.estimate
            write_plan(path.with_suffix(".plan"), found.plan, found.problem)
        write_json(path, _dump(outcome))  # last: it says that the outcome is there
        return outcome

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(self._common | key, sort_keys=True, default=str)
        return self._directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def _load(self, found: dict[str, Any], path: Path, case: PlanCase) -> PlanOutcome:
        if "reason" in found:
            return InfeasiblePlan(case, found["reason"], found["fixes"])
        problem = self._workload.problem(case)
        estimate = PlanEstimate(
            problem=problem,
            tables=tuple(_load_table(table, found["tables"]) for table in problem.tables),
            plan=read_plan(path.with_suffix(".plan"), problem),
            **found["estimate"],
        )
        lopsided = found["lopsided"]
        return FeasiblePlan(
            case,
            estimate,
            found["dense_ms"],
            found["all_reduce_ms"],
            lopsided=None if lopsided is None else Lopsided(**lopsided),
        )


def _known(path: Path, load: Callable[[dict[str, Any]], Found]) -> Found | None:
    """What a file says; None if it is not there or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        return load(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError):
        logger.warning("%s is damaged, and is made anew", path)
        return None


def _load_dense(found: dict[str, Any]) -> DenseCost:
    operations = tuple(Operation(**operation) for operation in found["operations"])
    return DenseCost(operations, found["num_parameters"])


def _dump(outcome: PlanOutcome) -> dict[str, Any]:
    if isinstance(outcome, InfeasiblePlan):
        return {"reason": list(outcome.reason), "fixes": list(outcome.fixes)}
    found = outcome.estimate
    return {
        "dense_ms": outcome.dense_ms,
        "all_reduce_ms": outcome.all_reduce_ms,
        "lopsided": None if outcome.lopsided is None else asdict(outcome.lopsided),
        "tables": {
            table.table.name: {
                "sharding_type": table.sharding_type,
                "compute_kernel": table.compute_kernel,
                "shards": [asdict(shard) for shard in table.shards],
            }
            for table in found.tables
        },
        "estimate": {name: getattr(found, name) for name in _NUMBERS},
    }


def _load_table(table: EmbeddingTable, tables: Mapping[str, Any]) -> TableEstimate:
    found = tables[table.name]
    shards = tuple(ShardEstimate(**shard) for shard in found["shards"])
    return TableEstimate(table, found["sharding_type"], found["compute_kernel"], shards)


def _file_text(path: Path | None) -> str | None:
    return path.read_text() if path is not None and path.exists() else None
