"""Timing things fairly: one after another in each round, and compared within rounds.

A slow moment of the machine hits all contestants of a round alike, so the ratio or difference of
two times of one round can be trusted where their absolute values cannot.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def alternate(
    contestants: Mapping[Key, Callable[[int], Result]],
    rounds: Iterable[int],
    *,
    warm_up: int = 0,
) -> dict[Key, list[Result]]:
    """What every contestant returns in each round; a round asks all of them once, in their order.

    Args:
        contestants: called with the number of the round.
        rounds: their numbers; may end early, but not within a round.
        warm_up: rounds at the beginning whose results are dropped.
    """
    results: dict[Key, list[Result]] = {name: [] for name in contestants}
    for place, number in enumerate(rounds):
        for name, contestant in contestants.items():
            result = contestant(number)
            if place >= warm_up:
                results[name].append(result)
    return results


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Measures how long a piece of work takes."""

    clock: Callable[[], float] = time.perf_counter
    """Seconds: on the wall (perf_counter), or of the processor (process_time, thread_time), which
    other work on the machine disturbs less."""
    ready: Callable[[], object] = lambda: None
    """Called before the time begins: waits for earlier work, or for other ranks."""
    finish: Callable[[], object] = lambda: None
    """Called at the end of the time: waits for work that was only queued, or for other ranks."""

    def measure(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Result of the work, and its milliseconds."""
        self.ready()
        started = self.clock()
        result = work()
        self.finish()
        return result, 1e3 * (self.clock() - started)

    def ms(self, work: Callable[[], object]) -> float:
        """Milliseconds of the work."""
        return self.measure(work)[1]


@dataclass(frozen=True)
class Times:
    """Times of one contestant, one for each round."""

    ms: NDArray[np.float64]

    @property
    def median(self) -> float:
        """In milliseconds, as all of these."""
        return float(np.median(self.ms))

    @property
    def fastest(self) -> float:
        """The minimum."""
        return float(self.ms.min())

    @property
    def slowest(self) -> float:
        """The maximum."""
        return float(self.ms.max())

    def percentile(self, percent: float) -> float:
        """Between the two nearest rounds, linearly."""
        return float(np.percentile(self.ms, percent))

    def ratio_to(self, base: "Times") -> float:
        """Median of the ratios to another contestant's time of the same round."""
        return float(np.median(self.ms / base.ms))

    def added_to(self, base: "Times") -> float:
        """Median of the differences from another contestant's time of the same round."""
        return float(np.median(self.ms - base.ms))


def times(results: Mapping[Key, list[float]]) -> dict[Key, Times]:
    """What `alternate` gives of contestants that return milliseconds."""
    return {name: Times(np.array(ms, dtype=np.float64)) for name, ms in results.items()}


def synchronize(device: torch.device) -> None:
    """Wait for the work that is queued on a GPU; a CPU queues none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_timer(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Times work on a device by itself, without what was queued before."""

    def wait() -> None:
        synchronize(device)

    return Timer(clock=clock, ready=wait, finish=wait)
