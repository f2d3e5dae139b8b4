"""Untrained scorers that every trained model has to beat."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from cdp_torchrec.coverage import own_chunks
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.requests import Impressions
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.evaluation import STRATA, history_strata
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport
from cdp_torchrec.progress import progress

TRUTH = "bayes"
"""Name of the scorer that knows the true click probabilities, where the log has them."""
_TRUTH_COLUMN = "click_probability"


class ReferenceScorers:
    """Scores in [0, 1] from a dataset alone."""

    def __init__(self, dataset: Path, schema: Schema) -> None:
        """Read the vocabularies that the scorers need."""
        counts = _column(dataset, schema.feature("item_id").entity, "count").astype(np.float64)
        self._popularity = np.append(0.0, counts / max(counts.max(initial=0.0), 1.0))
        self.names = ["popularity"]
        names = [feature.name for feature in schema.features]
        if "position" in names:
            places = _column(dataset, schema.feature("position").entity, "raw").astype(np.int64)
            self._position = np.append(0.0, 1.0 / (1.0 + places))
            self.names += ["position", "last_touched"]

    def score(self, name: str, impressions: Impressions) -> np.ndarray:
        """Scores of some impressions, [B]."""
        columns = impressions.candidate
        match name:
            case "popularity":
                return self._popularity[columns["item_id"]]
            case "position":
                return self._position[columns["position"]]
            case "last_touched":
                # The last item touched first, all others by position.
                first = columns["history_rank"] == 0
                return 0.5 * (first + self._position[columns["position"]])
            case _:
                return columns[_TRUTH_COLUMN]


def evaluate_references(dataset: Path) -> str:
    """One table of AUC, UAUC and GAUC of every reference scorer on the test split; collective.

    Args:
        dataset: dataset directory.

    Raises:
        DatasetError: the dataset is incomplete or damaged.
    """
    lines = [f"{'scorer':<14}{'AUC':>8}{'UAUC':>8}{'GAUC':>8}   GAUC 95 % interval"]
    for name, report in reference_reports(dataset).items():
        low, high = report.gauc_interval
        lines.append(
            f"{name:<14}{report.auc:8.4f}{report.uauc:8.4f}{report.gauc:8.4f}"
            f"   {low:.4f} .. {high:.4f}"
        )
    return "\n".join(lines)


def reference_reports(dataset: Path, *, num_bootstrap: int = 200) -> dict[str, MetricReport]:
    """Metrics of every reference scorer on the test split, by its name; collective.

    Args:
        dataset: dataset directory.
        num_bootstrap: replicates of the user bootstrap.

    Raises:
        DatasetError: the dataset is incomplete or damaged.
    """
    reader = DatasetReader(DataConfig(dir=dataset))
    scorers = ReferenceScorers(dataset, reader.schema)
    names, extra = list(scorers.names), []
    part = next(iter(sorted((dataset / "test").glob("*.parquet"))), None)
    if part is not None and _TRUTH_COLUMN in pq.read_schema(part).names:
        names.append(TRUTH)
        extra.append(_TRUTH_COLUMN)
    metrics = {name: ImpressionMetrics(strata=STRATA) for name in names}
    chunks = own_chunks(reader.impressions("test", extra_columns=extra))
    for impressions in progress(chunks, "untrained scorers", unit="chunks", active=is_rank_zero()):
        request = {
            name: torch.from_numpy(column[impressions.request_index].astype(np.int64))
            for name, column in impressions.request.items()
            if name in ("user_id", "request_id", "history_length")
        }
        rank = torch.from_numpy(impressions.candidate["history_rank"].astype(np.int64))
        for name in names:
            metrics[name].update(
                probability=torch.from_numpy(scorers.score(name, impressions)).float(),
                labels=torch.from_numpy(impressions.candidate["label"].astype(np.float32)),
                user_id=request["user_id"],
                request_id=request["request_id"],
                weights=torch.ones(len(rank)),
                strata=history_strata(request["history_length"], rank),
            )
    return {name: metrics[name].compute(num_bootstrap=num_bootstrap) for name in names}


def _column(dataset: Path, entity: str | None, name: str) -> np.ndarray:
    table = pq.read_table(dataset / "vocabulary" / f"{entity}.parquet", columns=[name])
    return table[name].to_numpy()
