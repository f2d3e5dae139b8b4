"""What an interest module costs as histories grow: time and memory of one batch.

Only the module is timed, on one CPU thread: its inputs (embeddings, index of the sequences) are
there, and gradients reach the embeddings. So `pooled` and the modules built on it, whose histories
are pooled by the lookup, cost the same for every length.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from cdp_torchrec.benchmark.histories.config import HistorySettings
from cdp_torchrec.benchmark.histories.inputs import embeddings, make_inputs
from cdp_torchrec.benchmark.histories.isolated import peak_memory_mib, reset_peak_memory
from cdp_torchrec.interest import (
    InterestConfig,
    InterestDims,
    PooledConfig,
    build_interest,
)
from cdp_torchrec.timer import Timer, Times, alternate, times

_CAPS = ("max_length", "recent_length")
"""Fields of interest modules that cap the length of the history they read."""
_QUICK_MS = 50.0
_QUICK_REPEATS = 5
"""A quick batch is one of several, of which the median counts: single ones vary too much."""
_WARM_UP_LENGTH = 8


@dataclass(frozen=True)
class HistoryCase:
    """One row at one history length."""

    row: str
    length: int
    config: InterestConfig
    """Reads the whole length."""
    pooled: PooledConfig
    """What it is compared with."""
    settings: HistorySettings


@dataclass(frozen=True)
class ModuleCost:
    """What a batch costs a module; medians over the rounds."""

    train_ms: float
    """CPU time of forward and backward, with gradients of parameters and embeddings."""
    score_ms: float
    """CPU time of forward in evaluation."""
    train_ratio: float
    """To `pooled` in the same round."""
    score_ratio: float
    """To `pooled` in the same round."""
    train_mib: float
    """Peak of the process's memory above what it held with the inputs."""
    score_mib: float
    """As train_mib, in evaluation."""
    num_rounds: int


@dataclass(frozen=True)
class Contestant:
    """What is timed of a module."""

    train: Callable[[], None]
    """Forward and backward of a batch."""
    score: Callable[[], None]
    """Forward of the same batch in evaluation."""


def cap(config: InterestConfig) -> int | None:
    """How many of the most recent behaviours a module reads at most; None: all."""
    is_capped = any(getattr(config, name, None) for name in _CAPS)
    return config.history.recent_length if is_capped else None


def uncapped(config: InterestConfig, length: int) -> InterestConfig:
    """The same module reading `length` behaviours, if it caps them."""
    caps = {name: length for name in _CAPS if getattr(config, name, None)}
    return config.model_copy(update=caps)


def measure(case: HistoryCase) -> ModuleCost:
    """Cost of a case; in a process of its own, or earlier peaks of memory hide this one."""
    started = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pooled = make_contestant(case.pooled, case.length, case.settings)
    # Libraries that are loaded on first use are no cost of a batch.
    warm_up = uncapped(case.config, _WARM_UP_LENGTH)
    for contestant in (pooled, make_contestant(warm_up, _WARM_UP_LENGTH, case.settings)):
        contestant.score()
        contestant.train()
    row = make_contestant(case.config, case.length, case.settings)
    score_mib, train_mib = _peak_mib(row.score, row.train)
    deadline = started + case.settings.time_limit_s / 2
    found = time_rounds(pooled, row, Timer(clock=time.process_time), _rounds(case, deadline))
    return ModuleCost(
        train_ms=found["train"].median,
        score_ms=found["score"].median,
        train_ratio=found["train"].ratio_to(found["pooled_train"]),
        score_ratio=found["score"].ratio_to(found["pooled_score"]),
        train_mib=train_mib,
        score_mib=score_mib,
        num_rounds=len(found["train"].ms),
    )


def time_rounds(
    pooled: Contestant, row: Contestant, timer: Timer, rounds: Iterable[int]
) -> dict[str, Times]:
    """Times of scoring and of training, of both.

    Args:
        pooled: what the row is compared with.
        row: what is measured.
        timer: measures a batch.
        rounds: their numbers.
    """

    def ms(step: Callable[[], None]) -> float:
        first = timer.ms(step)
        if first >= _QUICK_MS:
            return first
        return statistics.median([first, *(timer.ms(step) for _ in range(_QUICK_REPEATS - 1))])

    return times(
        alternate(
            {
                "pooled_score": lambda _: ms(pooled.score),
                "score": lambda _: ms(row.score),
                "pooled_train": lambda _: ms(pooled.train),
                "train": lambda _: ms(row.train),
            },
            rounds,
        )
    )


def _rounds(case: HistoryCase, deadline: float) -> Iterator[int]:
    for number in range(case.settings.max_rounds):
        yield number
        if time.monotonic() > deadline:
            return


def make_contestant(config: InterestConfig, length: int, settings: HistorySettings) -> Contestant:
    """A module with random inputs of its own.

    Args:
        config: the module.
        length: of the longest history.
        settings: sizes.
    """
    dim = settings.embedding_dim
    dims = InterestDims(
        user=dim,
        query=dim,
        item=dim,
        item_attributes=2 * dim,
        context=2 * dim,
        scene=dim,
        category=dim,
        action=dim,
        domains=8,
    )
    module = build_interest(config, dims)
    inputs = make_inputs(config.history, dims, length, settings)
    leaves = [*module.parameters(), *embeddings(inputs)]

    def train() -> None:
        module.train()
        output = module(inputs)
        # Every output has a part in what the gradients are of.
        total = output.interest.mean()
        for name, values in {**output.losses, **output.click_logits}.items():
            total = total + module.loss_weights[name] * values.mean()
        torch.autograd.grad(total, leaves, allow_unused=True)

    @torch.no_grad()
    def score() -> None:
        module.eval()
        module(inputs)

    return Contestant(train, score)


def _peak_mib(*steps: Callable[[], None]) -> list[float]:
    """Peak memory of each step above what the process held before all of them."""
    before = reset_peak_memory()
    peaks = []
    for step in steps:
        reset_peak_memory()
        step()
        peaks.append(peak_memory_mib() - before)
    return peaks
