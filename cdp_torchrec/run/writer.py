"""Writes checkpoints behind the training: the loop waits for a copy of the tensors, no longer."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from cdp_torchrec.distributed.rank_zero import on_all_ranks
from cdp_torchrec.run.checksums import record_file
from cdp_torchrec.run.config import CheckpointMode
from cdp_torchrec.run.metadata import METADATA
from cdp_torchrec.run.records import CheckpointError, FileRecord
from cdp_torchrec.whole_file import remove_leftovers, whole_directory, write_whole

_Found = TypeVar("_Found")


class CheckpointWriter:
    """Writes one checkpoint at a time, whole or not at all."""

    def __init__(self, mode: CheckpointMode) -> None:
        """Start with nothing in flight.

        Args:
            mode: "background" keeps a copy of this rank's tensors in main memory, from the first
                checkpoint on, and writes that; "blocking" writes the tensors themselves while the
                training waits.
        """
        self._mode = mode
        self._copies: dict[MetadataIndex, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether `finish` would raise at once, on this rank."""
        future = self._in_flight
        return future is not None and future.done() and future.exception() is not None

    def write(
        self,
        final: Path,
        state: Mapping[str, Any],
        files: Callable[[Mapping[str, FileRecord]], Mapping[str, str]],
        then: Callable[[], None],
    ) -> None:
        """Begin to write a checkpoint, after the one in flight; collective.

        Args:
            final: its directory, which appears when everything is in it.
            state: tensors, sharded or the same on all ranks; may change afterwards.
            files: makes the text files from the records of the others; called on rank 0.
            then: called on rank 0 when the checkpoint is there.

        Raises:
            CheckpointError: the one in flight could not be written.
        """
        self.finish()
        group = _writing_group(dist.group.WORLD)
        planner = DefaultSavePlanner()
        if self._mode == "background":
            planner = _CopyPlanner(state, self._copies)
        task = _Task(final, state, planner, files, then, group)
        self._in_flight = self._thread.submit(task.run)
        if self._mode == "blocking":
            self.finish()

    def follow(self, final: Path, step: Callable[[], None]) -> None:
        """Change a checkpoint on rank 0, when the one in flight is there; collective.

        Args:
            final: its directory.
            step: changes it, whole or not at all.
        """
        group = _writing_group(dist.group.WORLD)
        self._in_flight = self._thread.submit(_follow, self._in_flight, final, step, group)
        if self._mode == "blocking":
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            CheckpointError: it could not be written; nothing is left of it, older ones stay.
        """
        future, self._in_flight = self._in_flight, None
        if future is not None:
            future.result()


class _CopyPlanner(DefaultSavePlanner):
    """Plans by the live tensors, of which only the shapes are read, and writes copies of them."""

    def __init__(self, state: Mapping[str, Any], copies: dict[MetadataIndex, Tensor]) -> None:
        """Copy this rank's tensors.

        Args:
            state: the live tensors.
            copies: of an earlier checkpoint, overwritten here: fresh memory costs more than a copy.
        """
        super().__init__()
        self._copies = copies
        self.set_up_planner(dict(state))
        on_device = False
        for item in self.create_local_plan().items:
            tensor = super().resolve_data(item)
            assert isinstance(tensor, Tensor)
            on_device = on_device or tensor.is_cuda
            if item.index not in copies:
                copies[item.index] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda
                )
            copies[item.index].copy_(tensor.detach(), non_blocking=True)
        if on_device:
            torch.cuda.synchronize()

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The copy of what is to be written."""
        return self._copies[write_item.index]


class _DiskWriter(dcp.FileSystemWriter):
    """Writes this rank's tensors, and says what the disk said.

    Where a write fails, torch.save ends on its own count of bytes, and the disk's error is only
    what it was handling; that would be lost on the way from rank to rank.
    """

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Write them; they are there when it returns."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


class _Task:
    """One checkpoint on its way to the disk, on this rank; every step is one on all ranks."""

    def __init__(
        self,
        final: Path,
        state: Mapping[str, Any],
        planner: DefaultSavePlanner,
        files: Callable[[Mapping[str, FileRecord]], Mapping[str, str]],
        then: Callable[[], None],
        group: dist.ProcessGroup,
    ) -> None:
        self._final = final
        self._state = dict(state)
        self._planner = planner
        self._files = files
        self._then = then
        self._group = group
        self._rank = dist.get_rank()

    def run(self) -> None:
        """Write it.

        Raises:
            CheckpointError: a rank could not; on all ranks.
        """
        with _named(self._final):
            with ExitStack() as opened:
                partial = _on_rank_zero(lambda: self._open(opened), self._group)
                dcp.save(
                    self._state,
                    storage_writer=_DiskWriter(partial),
                    planner=self._planner,
                    process_group=self._group,
                )
                records = on_all_ranks(lambda: self._own_records(partial), group=self._group)
                _on_rank_zero(lambda: self._close(partial, records, opened), self._group)
            _on_rank_zero(self._then, self._group)

    def _open(self, opened: ExitStack) -> Path:
        remove_leftovers(self._final.parent, "step-*")
        return opened.enter_context(whole_directory(self._final))

    def _own_records(self, partial: Path) -> dict[str, FileRecord]:
        own = [*partial.glob(f"__{self._rank}_*")]
        if self._rank == 0:
            own.append(partial / METADATA)
        return {path.name: record_file(path) for path in own}

    def _close(
        self, partial: Path, parts: Sequence[Mapping[str, FileRecord]], opened: ExitStack
    ) -> None:
        records = {name: record for part in parts for name, record in part.items()}
        for name, text in self._files(records).items():
            write_whole(partial / name, text)
        opened.close()  # which gives it its name


def _follow(
    before: Future[None] | None, final: Path, step: Callable[[], None], group: dist.ProcessGroup
) -> None:
    if before is not None:
        before.result()
    with _named(final):
        _on_rank_zero(step, group)


def _on_rank_zero(step: Callable[[], _Found], group: dist.ProcessGroup) -> _Found:
    found = on_all_ranks(lambda: step() if dist.get_rank() == 0 else None, group=group)
    return found[0]  # pyrefly: ignore[bad-return]


@contextmanager
def _named(final: Path) -> Generator[None]:
    """Let errors say which checkpoint it is."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{final}: cannot write the checkpoint: {reason(error)}") from error


@lru_cache(maxsize=1)
def _writing_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """All ranks once more, so that what the training sends meanwhile is not in the way."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def reason(error: BaseException) -> str:
    """What failed on each rank; CheckpointException, no Exception, has it with tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
    return str(error)
