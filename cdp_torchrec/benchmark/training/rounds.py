"""Training speed of several models side by side."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cdp_torchrec.benchmark.training.config import TrainingBenchmarkConfig, TrainingSettings
from cdp_torchrec.benchmark.training.contestants import (
    Contestant,
    plain_contestant,
    sharded_contestant,
)
from cdp_torchrec.benchmark.training.profile import profile_training
from cdp_torchrec.data.loader import TrainBatches
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.experiment import build_experiment, prepare_synthetic
from cdp_torchrec.progress import progress
from cdp_torchrec.timer import Timer, Times, alternate, synchronize, times

_READ_BATCHES = 20


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured; the same on all ranks but for the shares, which are this rank's."""

    settings: TrainingSettings
    world_size: int
    device: str
    """cpu or cuda."""
    global_batch_size: int
    reading_ms: Mapping[str, float]
    """To read and assemble this rank's share of a batch, the median, by name of the row."""
    rounds: Mapping[str, Times]
    """Of `settings.steps` steps, by name."""
    shares: Mapping[str, Mapping[str, float]]
    """Of a step's time, by name and kind of work."""

    def impressions_per_s(self, ms: float) -> float:
        """Speed over all ranks of a round that took so long."""
        return self.global_batch_size * self.settings.steps / ms * 1e3


def measure_training(
    rows: Mapping[str, TrainingBenchmarkConfig], device: torch.device
) -> TrainingSpeed:
    """Train every row, in rounds that alternate, on batches in memory; collective.

    Args:
        rows: configurations that differ in the interest module, by name.
        device: where this rank computes.

    Raises:
        ConfigError: a configuration does not fit the dataset, the ranks, or plain tables.
    """
    first = next(iter(rows.values()))
    settings = first.benchmark
    prepare_synthetic(first.data)
    experiments = {name: build_experiment(config, device) for name, config in rows.items()}
    contestants = [
        sharded_contestant(name, experiment, num_batches=settings.steps)
        for name, experiment in experiments.items()
    ]
    base, of_base = next(iter(experiments.items()))
    if settings.plain and dist.get_world_size() == 1:
        twin = plain_contestant(f"{base}, plain PyTorch", of_base, num_batches=settings.steps)
        contestants.append(twin)

    def together() -> None:
        synchronize(device)
        dist.barrier()

    timer = Timer(ready=together, finish=together)
    return TrainingSpeed(
        settings=settings,
        world_size=dist.get_world_size(),
        device=device.type,
        global_batch_size=first.trainer.global_batch_size,
        reading_ms={name: reading_ms(e.data.train, Timer()) for name, e in experiments.items()},
        rounds=time_training(contestants, settings, timer),
        shares={c.name: profile_training(c, device, num_steps=settings.steps) for c in contestants},
    )


def time_training(
    contestants: Sequence[Contestant], settings: TrainingSettings, timer: Timer
) -> dict[str, Times]:
    """Times of rounds of steps, the first round not counted.

    Args:
        contestants: what trains.
        settings: number of rounds and steps.
        timer: measures a round of one contestant.
    """

    def steps(contestant: Contestant) -> Callable[[int], float]:
        def work() -> None:
            for _ in range(settings.steps):
                contestant.step()

        return lambda _: timer.ms(work)

    rounds = progress(range(settings.rounds + 1), "benchmark", unit="rounds", active=is_rank_zero())
    return times(alternate({c.name: steps(c) for c in contestants}, rounds, warm_up=1))


def reading_ms(batches: TrainBatches, timer: Timer) -> float:
    """Milliseconds to read and assemble one batch of this rank, the median of some.

    Args:
        batches: training batches.
        timer: measures a batch.
    """
    positions = batches.positions(0, _READ_BATCHES)
    return statistics.median(timer.ms(lambda p=p: batches[p]) for p in positions)
