"""Score all impressions of a split once, on all ranks, and measure the result exactly."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.loader import EvaluationBatches
from cdp_torchrec.data.workers import BatchLoader
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.step_counts import kept_step_counts
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport
from cdp_torchrec.predictions import PredictionFile, PredictionWriter
from cdp_torchrec.progress import progress

STRATA = {
    "history_length": ("0", "1-5", "6-20", "21-100", "101+"),
    "candidate_in_history": ("no", "yes"),
}
_HISTORY_BOUNDS = (0, 5, 20, 100)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a split is scored."""

    device: torch.device
    loader: BatchLoader = field(default_factory=BatchLoader)
    """Prepares the batches."""
    num_bootstrap: int = 0
    """Replicates of the user bootstrap; 0: no intervals."""
    predictions: PredictionFile | None = None
    """Where every prediction is written."""
    description: str = "evaluate"
    """Name of the work in its progress."""
    after_batch: Callable[[], None] | None = None
    """Called on all ranks after each batch; what it raises, on all of them, ends the scoring."""


def evaluate(
    model: DistributedModelParallel,
    optimizer: ScheduledOptimizer,
    batches: EvaluationBatches,
    settings: EvaluationSettings,
) -> MetricReport:
    """Metrics of a model, identical on every rank; collective.

    Args:
        model: the sharded model; its mode is restored afterwards.
        optimizer: its optimizer, untouched; the pipeline's interface asks for it.
        batches: the split.
        settings: how to score it.
    """
    metrics = ImpressionMetrics(strata=STRATA)
    training = model.training
    model.eval()
    # The pipeline overlaps the exchange of ids with the model; in eval mode it does not train.
    pipeline = TrainPipelineSparseDist(model, optimizer, settings.device)
    pending: list[Batch] = []
    source = _remembering(settings.loader.load(batches, list(range(len(batches)))), pending)
    writer = PredictionWriter(settings.predictions) if settings.predictions else None
    with torch.no_grad(), kept_step_counts(model), writer or nullcontext():
        for _ in progress(
            range(len(batches)), settings.description, unit="batches", active=is_rank_zero()
        ):
            output = pipeline.progress(source)
            batch = pending.pop(0)
            probability = torch.sigmoid(output.logits)
            update_metrics(metrics, batch, probability)
            if writer:
                writer.write(batch, probability)
            if settings.after_batch:
                settings.after_batch()
    pipeline.detach()
    model.train(training)
    return metrics.compute(num_bootstrap=settings.num_bootstrap)


def update_metrics(metrics: ImpressionMetrics, batch: Batch, probability: Tensor) -> None:
    """Add one scored batch.

    Args:
        metrics: where to add it.
        batch: the impressions.
        probability: float [B].
    """
    metrics.update(
        probability=probability,
        labels=batch.labels,
        user_id=batch.user_id,
        request_id=batch.request_id,
        weights=batch.weights,
        strata=history_strata(batch.history_length, batch.history_rank),
    )


def history_strata(history_length: Tensor, history_rank: Tensor) -> dict[str, Tensor]:
    """Stratum of each impression, int64 [B], in each stratification of STRATA.

    Args:
        history_length: behaviours of the user before the request, int64 [B].
        history_rank: -1 where the candidate is not in the history, int64 [B].
    """
    bounds = torch.tensor(_HISTORY_BOUNDS, device=history_length.device)
    return {
        "history_length": torch.bucketize(history_length, bounds),
        "candidate_in_history": (history_rank >= 0).long(),
    }


def _remembering(source: Iterator[Batch], pending: list[Batch]) -> Iterator[Batch]:
    """Pass batches on; the pipeline runs ahead, and its output does not carry the batch."""
    for batch in source:
        pending.append(batch)
        yield batch
