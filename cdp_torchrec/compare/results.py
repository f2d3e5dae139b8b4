"""What a finished cell leaves: cell.json and the bootstrap replicates, written last."""

# K bootstrap replicates

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.whole_file import whole_file, write_json

METRICS = ("auc", "uauc", "gauc")
"""The metrics that are compared."""

_RESULT, _REPLICATES, _FAILURE = "cell.json", "replicates.npy", "failed.json"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Scoring one request with all its candidates: lookup and dense part, without reading."""

    median_ms: float
    p90_ms: float
    num_candidates: int
    """Candidates of each request timed."""
    num_requests: int


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a training took."""

    validation: float
    """Best value of the validation metric."""
    steps: int
    """Optimizer steps done, also those behind the best checkpoint."""
    training_s: float
    """Time of the optimizer steps with reading, without validations and checkpoints."""
    cpu_s: float
    """CPU seconds of all ranks in the attempt that finished the cell, with validations, the test
    and all threads; not of worker processes that prepare batches, nor of interrupted attempts."""
    impressions_per_s: float
    """Median speed of training."""
    dense_parameters: int
    sparse_parameters: int
    latency: Latency


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell of the table, or one untrained scorer."""

    metrics: Mapping[str, Any]
    """Of the test split, as MetricReport.to_dict without strata."""
    replicates: Mapping[str, NDArray[np.float64]]
    """Of METRICS, [K]; paired between all results of a dataset."""
    cost: TrainingCost | None
    """None for an untrained scorer."""

    def value(self, metric: str) -> float:
        """A metric of the test split; NaN where it is undefined."""
        found = self.metrics[metric]
        return math.nan if found is None else found


def result_of(report: MetricReport, cost: TrainingCost | None) -> Result:
    """The result that an evaluation of the test split gives."""
    metrics = report.to_dict()
    del metrics["strata"]
    return Result(
        metrics=metrics,
        replicates={name: report.replicates[name] for name in METRICS},
        cost=cost,
    )


def write_result(directory: Path, result: Result) -> None:
    """Write a result; cell.json comes last, so that where it is everything is."""
    with whole_file(directory / _REPLICATES) as partial, partial.open("wb") as file:
        np.save(file, np.stack([result.replicates[name] for name in METRICS]))
    cost = asdict(result.cost) if result.cost else None
    write_json(directory / _RESULT, {"metrics": result.metrics, "cost": cost})


def read_result(directory: Path) -> Result | None:
    """The result of a finished cell; None if it is not finished."""
    path = directory / _RESULT
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    replicates = np.load(directory / _REPLICATES)
    cost = found["cost"]
    return Result(
        metrics=found["metrics"],
        replicates=dict(zip(METRICS, replicates, strict=True)),
        cost=TrainingCost(**cost | {"latency": Latency(**cost["latency"])}) if cost else None,
    )


def write_failure(directory: Path, reason: str, traceback: str) -> None:
    """Remember why a cell failed; its next attempt begins with forgetting it."""
    write_json(directory / _FAILURE, {"reason": reason, "traceback": traceback})


def read_failure(directory: Path) -> str | None:
    """Why the last attempt of a cell failed; None if it did not."""
    path = directory / _FAILURE
    return json.loads(path.read_text())["reason"] if path.is_file() else None


def forget_failure(directory: Path) -> None:
    """Begin another attempt."""
    (directory / _FAILURE).unlink(missing_ok=True)
