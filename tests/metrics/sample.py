"""Logs of impressions for the tests of the metrics, and their evaluation."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cdp_torchrec.metrics import ImpressionMetrics, MetricReport

STRATA = {"history_length": ("0", "1-5", "6-20", "21+"), "candidate_in_history": ("no", "yes")}


def make_log(num_impressions: int = 1200, num_users: int = 40, seed: int = 0) -> SimpleNamespace:
    """Impressions in random order; three quarters of the scores are tied to others."""
    random = np.random.default_rng(seed)
    request = random.integers(0, num_users * 4, num_impressions)
    probability = random.beta(1.0, 6.0, num_impressions)
    tied = random.random(num_impressions) < 0.75
    probability = np.where(tied, np.round(probability, 1), probability).astype(np.float32)
    return SimpleNamespace(
        probability=probability,
        labels=(random.random(num_impressions) < 0.5 * probability + 0.05).astype(np.float32),
        user_id=request % num_users - 3,
        request_id=request,
        strata={
            "history_length": random.integers(0, 4, num_impressions),
            "candidate_in_history": random.integers(0, 2, num_impressions),
        },
    )


def evaluate(
    impressions: SimpleNamespace,
    *,
    order: NDArray | None = None,
    batch_size: int = 512,
    num_bootstrap: int = 8,
    seed: int = 0,
    max_rows_in_memory: int = 100_000,
    spool_dir: Path | None = None,
) -> MetricReport:
    metrics = ImpressionMetrics(
        strata=STRATA, max_rows_in_memory=max_rows_in_memory, spool_dir=spool_dir
    )
    order = np.arange(len(impressions.labels)) if order is None else order
    for batch in np.split(order, range(batch_size, len(order), batch_size)):
        metrics.update(
            probability=torch.from_numpy(impressions.probability[batch]),
            labels=torch.from_numpy(impressions.labels[batch]),
            user_id=torch.from_numpy(impressions.user_id[batch]),
            request_id=torch.from_numpy(impressions.request_id[batch]),
            strata={k: torch.from_numpy(v[batch]) for k, v in impressions.strata.items()},
        )
    return metrics.compute(num_bootstrap=num_bootstrap, seed=seed)


def brute_force_groups(
    impressions: SimpleNamespace, group: NDArray
) -> list[tuple[int, int, float]]:
    """Group id, size and AUC of every group with both labels."""
    result = []
    for identity in np.unique(group):
        inside = group == identity
        labels = impressions.labels[inside]
        if 0 < labels.sum() < len(labels):
            score = impressions.probability[inside]
            result.append((int(identity), len(labels), float(roc_auc_score(labels, score))))
    return result


def select(impressions: SimpleNamespace, rows: NDArray) -> SimpleNamespace:
    columns = {k: v[rows] for k, v in vars(impressions).items() if k != "strata"}
    strata = {name: level[rows] for name, level in impressions.strata.items()}
    return SimpleNamespace(**columns, strata=strata)


def by_hand() -> SimpleNamespace:
    """Three users with five, two and one impressions in four requests."""
    return SimpleNamespace(
        probability=np.array([0.875, 0.25, 0.25, 0.125, 0.625, 0.5, 0.75, 0.375], np.float32),
        labels=np.array([1, 0, 1, 0, 0, 1, 0, 0], np.float32),
        user_id=np.array([7, 7, 7, 7, 7, 8, 8, 9]),
        request_id=np.array([1, 1, 1, 2, 2, 3, 3, 4]),
        strata={
            "history_length": np.array([0, 0, 0, 0, 0, 3, 3, 3]),
            "candidate_in_history": np.array([1, 0, 1, 0, 0, 0, 0, 0]),
        },
    )
