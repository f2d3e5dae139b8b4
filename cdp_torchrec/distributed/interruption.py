"""SIGTERM and SIGINT as a wish that all ranks fulfil after the same step.

A signal may reach some ranks only, and at any moment. Ranks therefore tell each other about once a
second what they know, in one small collective; what one knows then, all know after the same step.
"""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

_EVERY_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A training has ended at the wish of a signal, with all it had reached on the disk."""

    def __init__(self, number: int, text: str) -> None:
        """Say so.

        Args:
            number: of the signal.
            text: where the training stands.
        """
        super().__init__(f"{signal.Signals(number).name}: {text}")
        self.number, self.text = number, text

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return 128 + self.number


@contextmanager
def going_on_by(way: str) -> Generator[None]:
    """Let a signal that ends the block also say how to go on, in words."""
    try:
        yield
    except Interrupted as end:
        raise Interrupted(end.number, f"{end.text}; {way}") from None


class Interruption:
    """Receives signals while it is entered, and agrees with the other ranks on them."""

    _received = 0

    def __init__(self, device: "torch.device", *, world_size: int) -> None:
        """Know of no signal.

        Args:
            device: where collectives of this rank take place.
            world_size: number of ranks.
        """
        self._device = device
        self._world_size = world_size
        self._former: dict[int, Any] = {}
        self._steps = 0
        self._steps_between = 1
        self._agreed_at = time.monotonic()
        self.signal = 0
        """The signal that all ranks know of; 0: none."""
        self.has_failed = False
        """Whether all ranks know that one of them cannot go on."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            Interruption._received = 0
            self._former = {n: signal.signal(n, self._receive) for n in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._former and self._received and not self.signal and error is None:
            os.kill(os.getpid(), self._received)  # too late to be agreed on

    def _receive(self, number: int, frame: FrameType | None) -> None:
        Interruption._received = number
        if "RANK" not in os.environ:
            # Who interrupts twice does not want to wait. Launchers may pass one wish on twice.
            signal.signal(number, self._former[number])

    @classmethod
    def received(cls) -> int:
        """The signal that this process has received, whatever the others know; 0: none."""
        return cls._received

    def after_step(self, *, failed: bool = False) -> None:
        """Hear of the other ranks, if it is time to; collective about once a second.

        Args:
            failed: whether this rank knows of something that keeps the training from going on.
        """
        self._steps += 1
        if self._steps >= self._steps_between:
            seconds = self._share(failed)
            # From the same numbers on all ranks, so that all come together again.
            self._steps_between = max(int(_EVERY_S / max(seconds, 1e-3)), 1)

    def agree(self, *, failed: bool = False) -> None:
        """As `after_step`, now, and after the first step of what follows, however long that is."""
        self._share(failed)
        self._steps_between = 1

    def end_if_asked(self, text: str) -> None:
        """End what is done if all ranks know of a signal.

        Args:
            text: where the training stands.

        Raises:
            Interrupted: they do.
        """
        if self.signal:
            raise Interrupted(self.signal, text)

    def _share(self, failed: bool) -> float:
        """What any rank knows, to all; the longest time of a step since the last time, seconds."""
        import torch
        import torch.distributed as dist

        now = time.monotonic()
        seconds = (now - self._agreed_at) / max(self._steps, 1)
        known = [float(self._received), float(failed), seconds]
        if self._world_size > 1:
            shared = torch.tensor(known, dtype=torch.float64, device=self._device)
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            known = shared.tolist()
        self.signal, self.has_failed = int(known[0]), bool(known[1])
        self._steps, self._agreed_at = 0, now
        return known[2]
