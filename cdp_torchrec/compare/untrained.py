"""The untrained scorers of a dataset as rows of the table."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tqdm import tqdm

from cdp_torchrec.data.requests import ImpressionOrder, RequestFiles
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport
from cdp_torchrec.reference_scorers import ReferenceScorers

_CHUNK = 65536
_TRUTH = "click_probability"


def measure_untrained(dataset: Path, *, num_bootstrap: int) -> dict[str, MetricReport]:
    """Metrics of every untrained scorer on the test split, by its name; collective.

    Args:
        dataset: dataset directory.
        num_bootstrap: replicates of the user bootstrap.

    Raises:
        DatasetError: the dataset is incomplete or damaged.
    """
    schema = load_schema(dataset)
    scorers = ReferenceScorers(dataset, schema)
    parts = sorted((dataset / "test").glob("*.parquet"))
    knows_truth = bool(parts) and _TRUTH in pq.read_schema(parts[0]).names
    names = [*scorers.names, *(["bayes"] if knows_truth else [])]
    extra = [_TRUTH] if knows_truth else []
    order = ImpressionOrder(RequestFiles(dataset, schema, "test", extra_columns=extra), seed=None)
    metrics = {name: ImpressionMetrics() for name in names}
    starts = range(0, order.num_impressions, _CHUNK)[dist.get_rank() :: dist.get_world_size()]
    for start in tqdm(starts, desc="untrained", leave=False, delay=2, disable=not is_rank_zero()):
        impressions = order.take(0, start, min(start + _CHUNK, order.num_impressions))
        request = {
            name: torch.from_numpy(column[impressions.request_index].astype(np.int64))
            for name, column in impressions.request.items()
            if name in ("user_id", "request_id")
        }
        labels = torch.from_numpy(impressions.candidate["label"].astype(np.float32))
        for name in names:
            metrics[name].update(
                probability=torch.from_numpy(scorers.score(name, impressions)).float(),
                labels=labels,
                weights=torch.ones(len(labels)),
                strata={},
                **request,
            )
    return {name: metrics[name].compute(num_bootstrap=num_bootstrap) for name in names}
