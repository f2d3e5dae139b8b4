"""Processes that prepare batches ahead of their rank, as long as the rank needs batches at all."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Dataset

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.loader import EvaluationBatches, TrainBatches
from cdp_torchrec.data.packed import PackedBatch, pack
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.environment import quiet_libraries
from cdp_torchrec.stopped_by_signals import starting_children
from cdp_torchrec.user_error import UserError

_END_SHOWS_WITHIN_S = 1.0

_Item = tuple[int, int]
"""Number of the source, and position or step in it."""


class LoaderWorkerError(UserError, RuntimeError):
    """A worker process ended before its work was done."""


@dataclass(frozen=True)
class _Mistake:
    """A user's mistake that a worker found, without the worker's traceback."""

    error: Exception


class _Sources(Dataset["PackedBatch | _Mistake"]):
    """What a worker does for an item."""

    def __init__(self, sources: tuple[TrainBatches | EvaluationBatches, ...]) -> None:
        self._sources = sources

    def __getitem__(self, index: _Item) -> "PackedBatch | _Mistake":
        source, item = index
        try:
            return pack(self._sources[source][item])
        except DatasetError as error:
            return _Mistake(error)


class BatchLoader:
    """Batches of some sources, prefetched by worker processes that stay for the next stretch.

    Workers start when the first batch is wanted, and end with `close` or with their rank.
    """

    def __init__(
        self,
        sources: Sequence[TrainBatches | EvaluationBatches] = (),
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Make a loader; without workers, the calling process assembles batches of any source.

        Args:
            sources: where the workers read.
            num_workers: worker processes.
            pin_memory: put batches into page-locked memory, for copies to a GPU.
        """
        self._sources = tuple(sources)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._stretch: list[_Item] = []
        self._workers: list[BaseProcess] = []
        self._loader: DataLoader[PackedBatch | _Mistake] | None = None

    def load(self, source: TrainBatches | EvaluationBatches, items: list[int]) -> Iterator[Batch]:
        """Batches in the order of `items`; it ends the stretch before, read to its end or not.

        Args:
            source: where they come from; with workers, one of the loader's sources.
            items: positions or steps.

        Raises:
            DatasetError: the dataset is damaged.
            LoaderWorkerError: a worker was killed; the message names it.
        """
        if not self._num_workers:
            return self._assemble(source, items)
        number = [one is source for one in self._sources].index(True)
        return self._receive([(number, item) for item in items])

    def close(self) -> None:
        """End the workers, and return when they have ended; another stretch starts new ones."""
        if self._loader is not None and self._loader._iterator is not None:
            # An error on its way holds frames that hold the iterator, which alone ends them.
            self._loader._iterator._shutdown_workers()  # pyrefly: ignore[missing-attribute]
        self._loader = None
        self._workers = []

    def _assemble(
        self, source: TrainBatches | EvaluationBatches, items: list[int]
    ) -> Iterator[Batch]:
        for item in items:
            batch = source[item]
            yield batch.pin_memory() if self._pin_memory else batch

    def _receive(self, items: list[_Item]) -> Iterator[Batch]:
        self._stretch[:] = items
        try:
            for received in self._start() if self._loader is None else self._loader:
                if isinstance(received, _Mistake):
                    raise received.error
                yield received.unpack()
        except (RuntimeError, OSError, EOFError) as error:
            self._check_workers(error)
            raise

    def _check_workers(self, error: Exception) -> None:
        """Whether an error comes of a lost worker; its end may show a moment after the error."""
        wait([worker.sentinel for worker in self._workers], timeout=_END_SHOWS_WITHIN_S)
        lost = [worker for worker in self._workers if worker.exitcode is not None]
        if lost:
            raise LoaderWorkerError(
                f"a loader worker ended: {_ended(lost[0])}; there are trainer.num_workers = "
                f"{self._num_workers} of them for each rank"
            ) from error

    def _start(self) -> Iterator[PackedBatch | _Mistake]:
        """Start the workers, on the stretch."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.forked"])
        self._loader = DataLoader(
            _Sources(self._sources),
            sampler=self._stretch,  # read anew for each stretch
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            multiprocessing_context=context,
            worker_init_fn=_begin,
            persistent_workers=True,
            generator=torch.Generator(),  # draws nothing from the model's
        )
        others = set(multiprocessing.active_children())
        with starting_children():
            stretch = iter(self._loader)
        self._workers = [w for w in multiprocessing.active_children() if w not in others]
        return stretch


def _begin(worker: int) -> None:
    """Prepare this worker process; it ends as soon as its rank has ended, however that happened."""
    quiet_libraries()
    # Ctrl-C and a cluster's SIGTERM reach every process of a job: the rank ends its last steps
    # first, and needs their batches.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    rank = multiprocessing.parent_process()
    assert rank is not None

    def end() -> None:
        rank.join()
        os._exit(1)

    threading.Thread(target=end, name="end-with-rank", daemon=True).start()


_SUSPICIONS = {signal.SIGKILL: "is memory short?", signal.SIGBUS: "is /dev/shm full?"}


def _ended(worker: BaseProcess) -> str:
    """How a worker process ended."""
    code = worker.exitcode or 0
    if code >= 0:
        return f"process {worker.pid} ended with exit code {code}"
    number = signal.Signals(-code)
    suspicion = _SUSPICIONS.get(number)
    return f"process {worker.pid} was killed by {number.name}" + (
        f" ({suspicion})" if suspicion else ""
    )
