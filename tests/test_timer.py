"""Rounds alternate, and every figure is that of known durations."""

from collections.abc import Iterator

import numpy as np
import pytest

from cdp_torchrec.timer import Timer, Times, alternate, times
from tests.clock import Clock


def test_every_round_asks_all_contestants_in_their_order() -> None:
    asked: list[tuple[str, int]] = []
    contestants = {name: lambda n, name=name: asked.append((name, n)) for name in "ab"}
    alternate(contestants, range(3))
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_warm_up_is_run_and_not_counted() -> None:
    results = alternate({"a": lambda number: number}, [7, 8, 9], warm_up=1)
    assert results == {"a": [8, 9]}


def test_a_round_that_has_begun_is_finished_when_time_is_up() -> None:
    asked: list[str] = []

    def rounds() -> Iterator[int]:
        yield 0
        if len(asked) < 2:
            yield 1

    contestants = {name: lambda n, name=name: asked.append(name) for name in "ab"}
    results = alternate(contestants, rounds())
    assert asked == ["a", "b"]
    assert [len(result) for result in results.values()] == [1, 1]


def test_figures_are_those_of_known_durations() -> None:
    clock = Clock()
    timer = Timer(clock=clock)
    works = {"base": clock.passing(0.01, 0.1, 0.01), "slow": clock.passing(0.03, 0.2, 0.01)}
    found = times(alternate({n: lambda _, w=w: timer.ms(w) for n, w in works.items()}, range(3)))
    base, slow = found["base"], found["slow"]
    assert base.ms == pytest.approx([10, 100, 10])
    assert (slow.median, slow.fastest, slow.slowest) == pytest.approx((30, 10, 200))
    assert slow.percentile(75) == pytest.approx(115)
    # Within rounds 3, 2 and 1, though the medians are 30 and 10.
    assert slow.ratio_to(base) == pytest.approx(2)
    assert slow.added_to(base) == pytest.approx(20)


def test_waiting_for_queued_work_counts_and_getting_ready_does_not() -> None:
    clock = Clock()
    timer = Timer(clock=clock, ready=clock.passing(5.0), finish=clock.passing(0.5))
    result, ms = timer.measure(lambda: clock.wait(0.25) or "done")
    assert (result, ms) == ("done", pytest.approx(750))


def test_a_contestant_is_as_fast_as_itself() -> None:
    same = Times(np.array([1.0, 2.0, 4.0]))
    assert (same.ratio_to(same), same.added_to(same)) == (1.0, 0.0)
