"""What a finished training cost: parameters, time, and the latency of scoring one request."""

# R test requests

import json
import statistics
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cdp_torchrec.compare.results import Latency, TrainingCost
from cdp_torchrec.data.days import request_folder
from cdp_torchrec.data.loader import Share
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import Experiment, Trained, open_data
from cdp_torchrec.model.sparse_arch import is_table
from cdp_torchrec.run.saved import CHECKPOINTS, METRICS, best_checkpoint
from cdp_torchrec.timer import device_timer
from cdp_torchrec.user_error import UserError

_TIMED_REQUESTS = 100
_WARM_UP_REQUESTS = 10


class NoValidationError(UserError, RuntimeError):
    """The validation metric was never defined, so nothing can be chosen by it."""


def measure_cost(trained: Trained, *, cpu_s: float) -> TrainingCost | None:
    """What the training took, on rank 0; None on the others. Collective.

    Args:
        trained: the finished run.
        cpu_s: CPU seconds that the ranks have spent on it.

    Raises:
        NoValidationError: no validation had a defined metric; on all ranks.
    """
    experiment = trained.experiment
    latency = measure_latency(experiment)
    sparse, dense = count_parameters(experiment)
    trainer = experiment.config.trainer
    best = from_rank_zero(
        lambda: best_checkpoint(trained.run_dir / CHECKPOINTS), purpose="find the best checkpoint"
    )
    if best is None:
        raise NoValidationError(f"{trainer.validation_metric} was undefined in all validations")
    if dist.get_rank() != 0:
        return None
    training_s, speed = training_speed(
        trained.run_dir / METRICS, global_batch_size=trainer.global_batch_size
    )
    return TrainingCost(
        validation=best[1].value,
        steps=trained.progress.step,
        training_s=training_s,
        cpu_s=cpu_s,
        impressions_per_s=speed,
        dense_parameters=dense,
        sparse_parameters=sparse,
        latency=latency,
    )


def count_parameters(experiment: Experiment) -> tuple[int, int]:
    """Parameters of the embedding tables, all ranks together, and of everything else."""
    rows = sum(table.num_embeddings for table in experiment.data.layout.tables.values())
    parameters = experiment.parallelized.model.named_parameters()
    dense = sum(p.numel() for name, p in parameters if not is_table(name))
    return rows * experiment.config.model.embedding_dim, dense


def training_speed(metrics: Path, *, global_batch_size: int) -> tuple[float, float]:
    """Seconds of all optimizer steps, and the median of impressions per second.

    Args:
        metrics: metrics.jsonl of the run. Each line of training has the speed since the line
            before; steps that an interrupted process did in vain count once.
        global_batch_size: impressions of a step.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    speeds = {line["step"]: line["impressions_per_s"] for line in lines if line["kind"] == "train"}
    steps = sorted(speeds)
    spans = zip(steps, [0, *steps[:-1]], strict=True)
    seconds = sum((now - before) * global_batch_size / speeds[now] for now, before in spans)
    return seconds, statistics.median(speeds.values())


@torch.no_grad()
def measure_latency(experiment: Experiment) -> Latency:
    """Time of scoring single requests of the test split, spread over it; collective.

    A request is a batch of its own, without padding, already on the device. On several ranks all
    of them score it at once.
    """
    data = experiment.config.data
    counts = _candidates_per_request(request_folder(data.dir, data.test_on))
    size, steps = requests_alone(counts)
    steps = steps[np.linspace(0, len(steps) - 1, min(_TIMED_REQUESTS, len(steps))).astype(int)]
    test = open_data(experiment.config, share=Share(0, 1), global_batch_size=size).test
    batches = [test[int(step)].to(experiment.device) for step in steps]
    model, times = experiment.parallelized.model, []
    timer = device_timer(experiment.device)
    training = model.training
    model.eval()
    for batch in [*batches[:_WARM_UP_REQUESTS], *batches]:
        times.append(timer.ms(lambda batch=batch: model(batch)))
    model.train(training)
    median, p90 = np.quantile(times[-len(batches) :], [0.5, 0.9])
    return Latency(
        median_ms=float(median),
        p90_ms=float(p90),
        num_candidates=size,
        num_requests=len(batches),
    )


def requests_alone(counts: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """A batch size, and the evaluation batches of that size that hold exactly one whole request.

    Evaluation batch s holds the impressions from s * size on: it is a request by itself where the
    request has `size` candidates and begins at a multiple of `size`. The size is the median number
    of candidates, if there is such a request, else that of the first request.

    Args:
        counts: candidates of each request in their order, [R].
    """
    starts = np.cumsum(counts) - counts
    for size in (int(np.sort(counts)[len(counts) // 2]), int(counts[0])):
        alone = starts[(counts == size) & (starts % size == 0)] // size
        if len(alone):
            return size, alone
    raise AssertionError("the first request begins at 0, a multiple of its size")


def _candidates_per_request(split: Path) -> NDArray[np.int64]:
    labels = (pq.read_table(path, columns=["label"])["label"] for path in sorted(split.glob("*")))
    lengths = [column.combine_chunks().value_lengths().to_numpy() for column in labels]
    return np.concatenate(lengths).astype(np.int64)
