"""Training speed of interest modules side by side, and where the time goes."""

# B impressions

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from tqdm import tqdm

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.experiment import Experiment
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.model.train_task import TrainLoss

_ROUNDS = 5
_STEPS = 10
_KINDS = {
    "communication": r"c10d|gloo|nccl|all_?to_?all|wait|barrier",
    "embedding lookup": r"fbgemm|embedding|lookup|permute|jagged",
    "matrix products": r"mm$|addmm|bmm|linear|mkldnn",
    "optimizer": r"^Optimizer|_foreach|addcdiv|addcmul|lerp",
}


@dataclass(frozen=True)
class Contestant:
    """Something whose training steps are timed."""

    name: str
    step: Callable[[Batch], None]
    batches: Sequence[Batch]
    """Of this rank."""
    global_batch_size: int


def time_training(contestants: Sequence[Contestant]) -> dict[str, list[float]]:
    """Impressions per second over all ranks in each round; rounds alternate; collective.

    Args:
        contestants: what to time. Each round runs all of them once, so that a slow moment of the
            machine hits all alike, and ratios within a round can be trusted.
    """
    speeds: dict[str, list[float]] = defaultdict(list)
    rounds = range(_ROUNDS + 1)
    for number in tqdm(rounds, desc="benchmark", unit="round", disable=not is_rank_zero()):
        for contestant in contestants:
            dist.barrier()
            started = time.perf_counter()
            for step in range(_STEPS):
                contestant.step(contestant.batches[step % len(contestant.batches)])
            _finish(contestant.batches[0].labels.device)
            dist.barrier()
            if number:  # the first round warms up
                seconds = time.perf_counter() - started
                speeds[contestant.name].append(contestant.global_batch_size * _STEPS / seconds)
    return dict(speeds)


def sharded_contestant(name: str, experiment: Experiment) -> Contestant:
    """Pipelined training of the sharded model on batches that are in memory."""
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    model.train()
    pipeline = TrainPipelineSparseDist(model, optimizer, experiment.device)
    optimizer.set_learning_rates(0)

    def step(batch: Batch) -> None:
        pipeline.progress(iter([batch, batch, batch]))

    return Contestant(name, step, _batches(experiment), experiment.config.trainer.global_batch_size)


def plain_contestant(name: str, experiment: Experiment) -> Contestant:
    """The same model with plain nn.EmbeddingBag tables and PyTorch's sparse optimizers.

    Args:
        name: its name.
        experiment: the sharded twin, for configuration and batches.
    """
    config, layout = experiment.config, experiment.data.layout
    tables = nn.ModuleDict(
        {
            entity: nn.EmbeddingBag(
                table.num_embeddings, config.model.embedding_dim, mode="sum", sparse=True
            )
            for entity, table in layout.tables.items()
        }
    )
    dense = RankingArch(layout, config.model)
    loss = TrainLoss(dense.interest.loss_weights)
    sparse = config.optimizer.sparse
    kind = torch.optim.SparseAdam if sparse.kind == "adam" else torch.optim.Adagrad
    optimizers = [
        kind(list(tables.parameters()), lr=sparse.lr),
        torch.optim.Adam(dense.parameters(), lr=config.optimizer.dense.lr),
    ]

    def step(batch: Batch) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        embeddings: dict[str, Tensor] = {}
        for feature in layout.features:
            jagged = batch.sparse[feature.key]
            embeddings[feature.key] = tables[feature.table](jagged.values(), jagged.offsets()[:-1])
        output = dense(embeddings, batch)
        total, _ = loss(output, batch.labels, batch.weights)
        total.backward()
        for optimizer in optimizers:
            optimizer.step()

    return Contestant(name, step, _batches(experiment), config.trainer.global_batch_size)


def reading_ms(experiment: Experiment) -> float:
    """Milliseconds to read and assemble one batch of this rank, the median of 20."""
    times = []
    for position in experiment.data.train.positions(0, 20):
        started = time.perf_counter()
        experiment.data.train[position]
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def profile_training(contestant: Contestant) -> dict[str, float]:
    """Share of a training step by kind of work on this rank; sums to 1.

    CPU time, or on a GPU its kernels' time.
    """
    device = contestant.batches[0].labels.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    contestant.step(contestant.batches[0])
    with profile(activities=activities) as profiler:
        for batch in contestant.batches:
            contestant.step(batch)
        _finish(device)
    shares: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kinds = (k for k, pattern in _KINDS.items() if re.search(pattern, event.key, re.IGNORECASE))
        shares[next(kinds, "other tensor work")] += own
    total = sum(shares.values())
    return {kind: share / total for kind, share in sorted(shares.items(), key=lambda s: -s[1])}


def _batches(experiment: Experiment) -> list[Batch]:
    positions = experiment.data.train.positions(0, _STEPS)
    return [experiment.data.train[position].to(experiment.device) for position in positions]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
