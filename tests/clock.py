"""A clock for measurements of known durations."""

from collections.abc import Callable


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    def passing(self, *seconds: float) -> Callable[..., None]:
        """Work that takes so long, one after the other, and then from the first again."""
        calls = 0

        def work(*_: object) -> None:
            nonlocal calls
            self.wait(seconds[calls % len(seconds)])
            calls += 1

        return work
