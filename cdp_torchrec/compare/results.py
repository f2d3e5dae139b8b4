"""What a finished cell leaves: one small JSON file with all that a table needs of it.

These files may be kept with the tables and taken to another machine, where the table goes on.
"""

# K bootstrap replicates

import base64
import functools
import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.config import ConfigError
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.undefined import json_ready
from cdp_torchrec.whole_file import write_json

METRICS = ("auc", "uauc", "gauc")
"""The metrics that are compared."""

_FAILURE = "failed.json"
_STRATA = "history_length"
_VERSION = 1


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
class Stratum:
    """GAUC of a part of the test split."""

    gauc: float
    num_impressions: int
    replicates: NDArray[np.float64]
    """Of GAUC, [K]."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell of the table, or one untrained scorer."""

    metrics: Mapping[str, Any]
    """Of the test split, as MetricReport.to_dict without strata."""
    replicates: Mapping[str, NDArray[np.float64]]
    """Of METRICS, [K]; paired between all results of a dataset."""
    strata: Mapping[str, Stratum]
    """By behaviours of the user before the request."""
    cost: TrainingCost | None
    """None for an untrained scorer."""

    def value(self, metric: str) -> float:
        """A metric of the test split; NaN where it is undefined."""
        found = self.metrics[metric]
        return math.nan if found is None else found


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a result comes from, so that it can be told from others without its run directory."""

    release: str
    """Version and commit of this package."""
    files: str
    """Digest of the dataset's manifest."""
    config: Mapping[str, Any] | None
    """Configuration of the training without `run`, as JSON; None for an untrained scorer."""


def result_of(report: MetricReport, cost: TrainingCost | None) -> Result:
    """The result that an evaluation of the test split gives."""
    metrics = report.to_dict()
    del metrics["strata"]
    return Result(
        metrics=metrics,
        replicates={name: report.replicates[name] for name in METRICS},
        strata={
            label: Stratum(
                gauc=point.gauc,
                num_impressions=point.num_impressions,
                replicates=report.strata_replicates[_STRATA][label],
            )
            for label, point in report.strata[_STRATA].items()
        },
        cost=cost,
    )


def write_result(path: Path, result: Result, origin: Origin) -> None:
    """Write a result as one small file."""
    content = {
        "version": _VERSION,
        "origin": asdict(origin),
        "metrics": result.metrics,
        "cost": asdict(result.cost) if result.cost else None,
        "replicates": {
            name: _packed(draws, around=result.value(name))
            for name, draws in result.replicates.items()
        },
        "strata": {
            label: {
                "gauc": json_ready(stratum.gauc),
                "num_impressions": stratum.num_impressions,
                "replicates": _packed(stratum.replicates, around=stratum.gauc),
            }
            for label, stratum in result.strata.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def read_result(path: Path) -> Result | None:
    """The result of a finished cell; None if it is not finished.

    Raises:
        ConfigError: the file is of another version of this package, or damaged.
    """
    found = _read(path)
    if found is None:
        return None
    with _no_result(path):
        return _result(found)


def _result(found: Mapping[str, Any]) -> Result:
    cost, metrics = found["cost"], found["metrics"]
    replicates = {
        name: _unpacked(found["replicates"][name], around=metrics[name]) for name in METRICS
    }
    if len({len(draws) for draws in replicates.values()}) > 1:
        raise ValueError("its metrics have different numbers of replicates")
    return Result(
        metrics=metrics,
        replicates=replicates,
        strata={
            label: Stratum(
                gauc=math.nan if stratum["gauc"] is None else stratum["gauc"],
                num_impressions=stratum["num_impressions"],
                replicates=_unpacked(stratum["replicates"], around=stratum["gauc"]),
            )
            for label, stratum in found["strata"].items()
        },
        cost=TrainingCost(**cost | {"latency": Latency(**cost["latency"])}) if cost else None,
    )


def read_origin(path: Path) -> Origin | None:
    """Where the result of a finished cell comes from; None if it is not finished.

    Raises:
        ConfigError: as `read_result`.
    """
    found = _read(path)
    if found is None:
        return None
    with _no_result(path):
        return Origin(**found["origin"])


@contextmanager
def _no_result(path: Path) -> Generator[None]:
    """What is odd in a file that somebody has changed, or that is something else."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError.of([f"{path}: is no result of a cell: remove it ({error})"]) from error


@functools.cache
def _parse(path: Path, changed_ns: int) -> dict[str, Any]:
    """The content of a file as it was at a moment; a table reads each of its cells often."""
    with _no_result(path):
        found = json.loads(path.read_text())
        version = found["version"]
    if version != _VERSION:
        raise ConfigError.of(
            [f"{path}: is of version {version}, this command reads {_VERSION}: remove it"]
        )
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def _packed(draws: NDArray[np.float64], *, around: float) -> str:
    """Base64 of the distances to the value in float16: 3 digits of what is itself a spread."""
    centre = 0.0 if math.isnan(around) else around
    return base64.b64encode((draws - centre).astype("<f2").tobytes()).decode()


def _unpacked(packed: str, *, around: float | None) -> NDArray[np.float64]:
    distances = np.frombuffer(base64.b64decode(packed), "<f2").astype(np.float64)
    return distances + (around or 0.0)


def write_failure(directory: Path, reason: str, traceback: str) -> None:
    """Remember why a cell failed; its next attempt begins with forgetting it."""
    write_json(directory / _FAILURE, {"reason": reason, "traceback": traceback})


def read_failure(directory: Path) -> str | None:
    """Why the last attempt of a cell failed; None if it did not."""
    path = directory / _FAILURE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["reason"])
    except (ValueError, KeyError, TypeError) as error:
        return f"{path} does not say why ({error})"


def forget_failure(directory: Path) -> None:
    """Begin another attempt."""
    (directory / _FAILURE).unlink(missing_ok=True)
