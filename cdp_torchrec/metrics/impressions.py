"""ImpressionMetrics: collects scored impressions on every rank, then reports exact metrics."""

# n impressions of a batch

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cdp_torchrec.metrics.bootstrap import mix
from cdp_torchrec.metrics.ranks import Ranks
from cdp_torchrec.metrics.report import MetricReport, build_report
from cdp_torchrec.metrics.rows import (
    NUM_PARTITIONS,
    row_dtype,
    stratifications,
    user_partition,
)
from cdp_torchrec.metrics.scores import auc_over_all
from cdp_torchrec.metrics.spool import Spool
from cdp_torchrec.metrics.sums import sum_over_users


class ImpressionMetrics:
    """AUC, UAUC, GAUC, log loss ... of all impressions that all ranks have seen.

    Definitions are those of `MetricReport`. Nothing is binned or averaged over batches: groups
    that are split over batches or ranks meet before their AUC is taken.

    Memory per rank is a few times max_rows_in_memory rows (about 25 bytes each); more rows go to
    a temporary directory. Only a single user, or 1/64 of all impressions, can exceed that bound.
    """

    def __init__(
        self,
        *,
        strata: Mapping[str, Sequence[str]] | None = None,
        spool_dir: Path | None = None,
        max_rows_in_memory: int = 4_000_000,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Start an evaluation.

        Args:
            strata: labels of the strata of each named stratification; the same on all ranks.
            spool_dir: where the temporary directory is made; None: the system's own place.
            max_rows_in_memory: impressions that this rank may hold in memory.
            process_group: the ranks that take part; None: all, or just this process if
                torch.distributed is not initialised.

        Raises:
            ValueError: bad strata or bound.
        """
        if max_rows_in_memory < 1:
            raise ValueError(f"max_rows_in_memory must be positive, found {max_rows_in_memory}")
        self._layout = stratifications(strata or {})
        self._ranks = Ranks(process_group)
        self._dtype = row_dtype(len(self._layout))
        self._spool = Spool(
            dtype=self._dtype,
            num_partitions=NUM_PARTITIONS,
            max_rows_in_memory=max_rows_in_memory,
            directory=spool_dir,
        )

    def update(
        self,
        *,
        probability: Tensor,
        labels: Tensor,
        user_id: Tensor,
        request_id: Tensor,
        strata: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch of this rank; tensors may live on any device. Not collective.

        Args:
            probability: click probabilities, float32 [n].
            labels: 0 or 1, [n].
            user_id: int64 [n].
            request_id: int64 [n]; a request belongs to one user.
            strata: index of each impression's stratum for every stratification, [n] each.
            weights: 1 for an impression, 0 for padding, [n]; padding is dropped unseen.

        Raises:
            ValueError: values that no impression can have; says how many and which.
        """
        columns = {
            "probability": probability,
            "labels": labels,
            "user_id": user_id,
            "request_id": request_id,
        }
        strata = strata or {}
        declared = [stratification.name for stratification in self._layout[1:]]
        if sorted(strata) != sorted(declared):
            raise ValueError(f"strata: expected {declared}, found {list(strata)}")
        columns |= {f"strata '{name}'": strata[name] for name in declared}
        if weights is not None:
            columns["weights"] = weights
        arrays = _arrays(columns)
        real = np.ones(len(probability), np.bool_)
        if weights is not None:
            weight = arrays["weights"]
            _check("weights", weight, (weight == 0) | (weight == 1), "neither 0 nor 1")
            real = weight == 1
        rows = self._rows(arrays, real)
        self._spool.append(rows, user_partition(rows["user"]))

    def compute(
        self, *, num_bootstrap: int = 200, confidence: float = 0.95, seed: int = 0
    ) -> MetricReport:
        """Metrics of everything added so far, on all ranks. Collective; changes nothing.

        Args:
            num_bootstrap: replicates of the user bootstrap; 0: no intervals.
            confidence: probability mass of the intervals.
            seed: seed of the replicates.

        Raises:
            ValueError: bad options, no impressions at all, or a request with several users.
        """
        if num_bootstrap < 0 or not 0 < confidence < 1:
            raise ValueError(
                "metrics: num_bootstrap must be at least 0 and confidence between 0 and 1,"
                f" found {num_bootstrap} and {confidence}"
            )
        if not self._ranks.sum(self._spool.counts).any():
            raise ValueError("metrics: no rank has seen any impression")
        options = {"num_bootstrap": num_bootstrap, "seed": seed}
        return build_report(
            sums=sum_over_users(self._spool, self._ranks, self._layout, **options),
            auc=auc_over_all(self._spool, self._ranks, self._layout, **options),
            layout=self._layout,
            confidence=confidence,
            seed=seed,
        )

    def _rows(self, arrays: Mapping[str, NDArray], real: NDArray[np.bool_]) -> NDArray:
        """The impressions that are no padding, checked."""
        probability, labels = arrays["probability"], arrays["labels"]
        in_range = (probability >= 0) & (probability <= 1)
        _check("probability", probability, in_range | ~real, "NaN or outside [0, 1]")
        _check("labels", labels, (labels == 0) | (labels == 1) | ~real, "neither 0 nor 1")
        rows = np.zeros(len(labels), self._dtype)
        rows["user"] = mix(arrays["user_id"].astype(np.int64).view(np.uint64))
        rows["request"] = arrays["request_id"]
        # Adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0.
        rows["probability"] = probability + np.float32(0)
        rows["clicked"] = labels == 1
        for column, stratification in enumerate(self._layout[1:], start=1):
            level = arrays[f"strata '{stratification.name}'"]
            last = len(stratification.labels) - 1
            in_range = (level >= 0) & (level <= last)
            _check(
                f"strata '{stratification.name}'", level, in_range | ~real, f"outside 0 .. {last}"
            )
            rows["strata"][:, column] = level
        return rows[real]


def _arrays(columns: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """The tensors on the CPU, after a look at their types and shapes."""
    if columns["probability"].dtype != torch.float32:
        raise ValueError(f"probability: expected float32, found {columns['probability'].dtype}")
    for name, tensor in columns.items():
        if name not in ("probability", "labels", "weights") and tensor.is_floating_point():
            raise ValueError(f"{name}: expected integers, found {tensor.dtype}")
        if tensor.ndim != 1 or len(tensor) != len(columns["probability"]):
            shapes = {key: tuple(value.shape) for key, value in columns.items()}
            raise ValueError(f"expected vectors of one length, found shapes {shapes}")
    return {name: tensor.detach().cpu().numpy() for name, tensor in columns.items()}


def _check(name: str, values: NDArray, allowed: NDArray[np.bool_], problem: str) -> None:
    bad = np.flatnonzero(~allowed)
    if len(bad):
        shown = ", ".join(f"{values[row]} at {row}" for row in bad[:5])
        more = ", ..." if len(bad) > 5 else ""
        raise ValueError(f"{name}: {len(bad)} of {len(values)} values are {problem}: {shown}{more}")
